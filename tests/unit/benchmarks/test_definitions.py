"""Tests of the benchmarks' workloads: what is asked, and the figures that follow from when tokens came."""

import pytest

from workloads.definitions import (
    FIRST_TOKEN_ID,
    LAST_TOKEN_ID,
    WORKLOADS,
    Request,
    Timings,
    make_figures,
    make_requests,
)


def lengths_of(letter: str, repetition: int = 0, divisor: int = 1) -> list[tuple[int, int]]:
    requests = make_requests(letter, repetition, divisor=divisor)
    return [(len(request.prompt), request.num_tokens) for request in requests]


@pytest.mark.parametrize(
    ("letter", "lengths"),
    [
        ("A", [(128, 128)]),
        ("B", [(2048, 32)]),
        ("D", [(128, 128)] * 16),
        ("E", [(544, 32)] * 32),
        ("F", [(128, 1)]),
    ],
)
def test_workloads_have_their_lengths(letter: str, lengths: list[tuple[int, int]]) -> None:
    assert lengths_of(letter) == lengths


def test_mixed_requests_stay_in_their_ranges() -> None:
    lengths = lengths_of("C")

    assert len(lengths) == 32
    assert all(32 <= prompt <= 256 and 32 <= output <= 128 for prompt, output in lengths)
    assert len(set(lengths)) > 16


def test_requests_of_e_share_512_tokens_and_no_more() -> None:
    prompts = [request.prompt for request in make_requests("E", 0)]

    assert len({tuple(prompt[:512]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:514]) for prompt in prompts}) == 32


@pytest.mark.parametrize("letter", WORKLOADS)
def test_a_repetition_has_the_same_lengths_and_fresh_tokens(letter: str) -> None:
    first, second = make_requests(letter, 0), make_requests(letter, 1)

    assert lengths_of(letter, 0) == lengths_of(letter, 1)
    assert first == make_requests(letter, 0)
    assert all(one.prompt[:16] != other.prompt[:16] for one, other in zip(first, second, strict=True))


def test_tokens_are_ids_that_every_tokenizer_has() -> None:
    tokens = [token for request in make_requests("D", 0) for token in request.prompt]

    assert min(tokens) >= FIRST_TOKEN_ID
    assert max(tokens) <= LAST_TOKEN_ID


def test_a_quick_run_is_shorter() -> None:
    assert lengths_of("B", divisor=4) == [(512, 8)]


def test_one_stream_decodes_between_its_first_and_last_token() -> None:
    figures = make_figures([Request([5] * 100, 11)], Timings([2.0], [4.0]))

    assert figures["first_token_s"] == 2.0
    assert figures["prefill_tokens_per_s"] == 50.0
    assert figures["decode_tokens_per_s"] == 5.0
    assert figures["output_tokens_per_s"] == pytest.approx(11 / 4)


def test_streams_decode_from_the_moment_when_all_have_started() -> None:
    figures = make_figures([Request([5], 11)] * 2, Timings([1.0, 2.0], [4.0, 4.0]))

    assert figures["first_token_s"] == 1.5
    assert figures["decode_tokens_per_s"] == 10.0


def test_a_system_that_cannot_tell_first_tokens_has_figures_of_the_whole_run() -> None:
    assert set(make_figures([Request([5], 4)], Timings([None], [2.0]))) == {"wall_s", "output_tokens_per_s"}
