"""Tests of the command `benchmarks/bench_workloads.py`."""

import json
from pathlib import Path

import pytest

from bench_workloads import choose_systems, main, parse_arguments


def test_kilotron_comes_first_then_its_variants_then_peers() -> None:
    words = ["--peer", "openvino=/venv/bin/python", "--kilotron-option", "small:quantization=int8"]

    names = [system.name for system in choose_systems(parse_arguments(words))]

    assert names == ["kilotron", "kilotron small", "transformers", "openvino"]


def test_systems_can_be_left_out() -> None:
    arguments = parse_arguments(["--without", "transformers"])

    assert [system.name for system in arguments.systems] == ["kilotron"]


def test_a_peer_takes_its_settings() -> None:
    words = ["--peer", "openvino:int8=/venv/bin/python", "--peer-option", "openvino int8:kv_cache=u8"]

    assert parse_arguments(words).systems[-1].options == {"kv_cache": "u8"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workloads", "AZ"], "unknown workloads Z; known: ABCDEF"),
        (["--peer", "nobody=x"], "unknown peer 'nobody'"),
        (["--kilotron-option", "x"], "name:key=value"),
        (["--peer-option", "vllm:eager=1"], "no system 'vllm' takes part"),
        (["--without", "nobody"], "no system 'nobody' takes part"),
    ],
)
def test_mistakes_are_told_before_anything_takes_time(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(words)

    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tiny_model_goes_through_all_workloads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny", "--quick", "--threads", "1", "--without", "transformers"]

    code = main([*words, "--folder", str(tmp_path), "--json", str(tmp_path / "out.json")])

    facts = json.loads((tmp_path / "out.json").read_text())
    assert code == 0
    assert sorted(run["workload"] for run in facts["runs"]) == list("ABCDEF")
    assert all(value > 0 for run in facts["runs"] for value in run["figures"].values())
    assert "### E: 32 requests that share 512 of 544 tokens" in capsys.readouterr().out
