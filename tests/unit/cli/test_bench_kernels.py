"""Tests of `kilotron bench kernels`: which trials there are and what is told of them, not how fast they are."""

import pytest

from unit.cli.conftest import Command

SIZES = ("--hidden", "64", "--ffn", "96", "--heads", "4", "--kv-heads", "2", "--head-dim", "32", "--vocab", "200",
         "--experts", "2", "--experts-per-token", "1", "--expert-ffn", "32", "--context", "40")  # fmt: skip
QUICK = ("--seconds", "0", "--threads", "1")
OPERATIONS = ["qkv", "proj", "fc1", "fc2", "vocabulary", "embedding", "rms_norm", "rotate_and_append",
              "attention, decode", "attention, prefill", "mix_experts"]  # fmt: skip


def test_every_operation_is_measured_with_every_number_of_rows(command: Command) -> None:
    outcome = command("bench", "kernels", *SIZES, *QUICK, "--rows", "3,1", "--json")

    (report,) = outcome.objects
    places = [(one["operation"], one["rows"]) for one in report["results"]]
    assert sorted(places) == sorted((name, rows) for name in OPERATIONS for rows in (1, 3))
    assert report["sizes"]["kv_heads"] == 2
    assert report["gb_per_s"] > 0
    assert report["gflop_per_s_bfloat16"] > 0


def test_a_share_is_the_least_time_over_the_time_it_took(command: Command) -> None:
    arguments = ("bench", "kernels", *SIZES, *QUICK, "--rows", "2", "--dtype", "float32", "--kernels", "reference")
    (report,) = command(*arguments, "--json").objects

    fc1 = next(one for one in report["results"] if one["operation"] == "fc1")
    assert fc1["bytes"] == 4 * (192 * 64 + 2 * (64 + 96))
    assert fc1["operations"] == 2 * 2 * 192 * 64
    least_s = max(fc1["bytes"] / report["gb_per_s"], fc1["operations"] / report["gflop_per_s_float32"]) / 1e9
    assert fc1["roofline_share"] == pytest.approx(least_s / fc1["median_s"])


def test_quantized_weights_have_a_ceiling_of_their_own(command: Command, checkpoint: str) -> None:
    outcome = command("bench", "kernels", checkpoint, *QUICK, "--rows", "1", "--quantization", "int4", "--vocab", "64")

    assert outcome.code == 0
    assert "gflop_per_s_int4" in outcome.out
    assert "32 to 96" in outcome.out  # the checkpoint's fc1
    assert "roofline" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "1,x"), "--rows must be numbers from 1 to 65536"),
        (("--rows", "0"), "--rows must be numbers"),
        (("--hidden", "0"), "--hidden must be at least 1"),
        (("--kv-heads", "3"), "--kv-heads 3 must divide --heads 16"),
        (("--head-dim", "33"), "--head-dim 33 must be even"),
        (("--experts", "1"), "--experts-per-token 2 exceeds --experts 1"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--seconds", "-1"), "--seconds must be at least 0"),
        (("--dtype", "float64"), "--dtype"),
        (("--kernels", "fast"), "kernels 'fast' are not known"),
    ],
)
def test_wrong_flags_are_refused_by_name(command: Command, arguments: tuple[str, str], message: str) -> None:
    outcome = command("bench", "kernels", *arguments)

    assert outcome.code == 2
    assert message in outcome.err
