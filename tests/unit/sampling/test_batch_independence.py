"""A row's bits do not depend on which other rows share its call, on their order, or on the number of threads."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.kernels.interface import KernelBackend
from kilotron.sampling_params import SamplingParams
from unit.sampling.sampling_support import Request, sample

VOCAB = 150
TOKENS = st.integers(0, VOCAB - 1)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    optional: dict[str, st.SearchStrategy[Any]] = {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        "top_k": st.integers(0, VOCAB + 5),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 0.5),
        "repetition_penalty": st.floats(0.5, 2),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=3),
        "allowed_token_ids": st.lists(TOKENS, min_size=1, max_size=20),
        "min_tokens": st.integers(0, 10),
    }
    fields = draw(st.fixed_dictionaries({}, optional=optional))
    top_n = draw(st.sampled_from([None, 0, 1, 5, 200]))
    if top_n is not None:
        fields |= {"return_log_probs": True, "top_n_logprobs": top_n}
    return Request(
        SamplingParams(**fields),
        seed=draw(st.integers(0, 2**64 - 1)),
        prompt_ids=draw(st.lists(TOKENS, min_size=1, max_size=8)),
        generated_ids=draw(st.lists(TOKENS, max_size=8)),
        end_ids=draw(st.frozensets(TOKENS, max_size=3)),
        bad_word_ids=tuple(map(tuple, draw(st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=3)))),
    )


def make_logits(rows: int, tokens: int, *, seed: int, is_coarse: bool) -> torch.Tensor:
    logits = torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.round() if is_coarse else logits  # coarse: many equals, as half precision gives


@settings(max_examples=150, deadline=None)
@given(
    crowd=st.lists(requests(), min_size=2, max_size=8),
    seed=st.integers(0, 2**32),
    is_coarse=st.booleans(),
    mode=st.sampled_from(["raw_logprobs", "processed_logprobs"]),
)
def test_a_row_alone_and_in_a_crowd_gives_the_same_bits(
    kernels: KernelBackend, crowd: list[Request], seed: int, is_coarse: bool, mode: str
) -> None:
    logits = make_logits(len(crowd), VOCAB, seed=seed, is_coarse=is_coarse)

    together = sample(kernels, logits, crowd, mode)

    for row, request in enumerate(crowd):
        alone = sample(kernels, logits[row : row + 1], [request], mode)
        assert [column[0] for column in alone[:3]] == [column[row] for column in together[:3]]
        assert repr(alone.faults.get(0)) == repr(together.faults.get(row))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_long_rows_give_the_same_bits_alone_reversed_and_on_any_number_of_threads(
    kernels: KernelBackend, threads: int, mode: str
) -> None:
    fields = [{}, {"top_k": 50}, {"top_p": 0.95}, {"temperature": 0}, {"min_p": 0.1}, {"top_k": 2000, "top_p": 0.9}] * 4
    crowd = [
        Request(SamplingParams(**field, return_log_probs=True, top_n_logprobs=3), seed=seed)
        for seed, field in enumerate(fields)
    ]
    logits = make_logits(24, 50_257, seed=1, is_coarse=False)
    expected = sample(kernels, logits, crowd, mode)

    torch.set_num_threads(threads)

    mirrored = sample(kernels, logits.flip(0), crowd[::-1], mode)
    assert [column[::-1] for column in mirrored[:3]] == list(expected[:3])
    for row in range(6):
        alone = sample(kernels, logits[row : row + 1], crowd[row : row + 1], mode)
        assert [column[0] for column in alone[:3]] == [column[row] for column in expected[:3]]
