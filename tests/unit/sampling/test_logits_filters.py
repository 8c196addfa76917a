"""Tests of top-k and top-p: Megatron's functions, the candidate lists, ties."""

import pytest
import torch

from kilotron.sampling.exact_weights import draw, max_of_rows, to_exponents
from kilotron.sampling.logits_filters import (
    Truncation,
    draw_truncated,
    modify_logits_for_top_k_filtering,
    modify_logits_for_top_p_filtering,
)

NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


def random_logits(rows: int, tokens: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, tokens, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("top_k", [1, 2, 17, 99, 100, 500])
def test_top_k_filter_does_what_transformers_does(top_k: int) -> None:
    transformers = pytest.importorskip("transformers")
    logits = random_logits(20, 100)
    expected = transformers.TopKLogitsWarper(top_k)(NO_IDS, logits.clone())

    modify_logits_for_top_k_filtering(logits, top_k)

    assert torch.equal(logits, expected)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_filter_does_what_transformers_does(top_p: float) -> None:
    transformers = pytest.importorskip("transformers")
    logits = random_logits(20, 100)
    expected = transformers.TopPLogitsWarper(top_p)(NO_IDS, logits.clone())

    modify_logits_for_top_p_filtering(logits, top_p)

    assert torch.equal(logits, expected)


@pytest.mark.parametrize("top_p", [0.0, 1.0])
def test_top_p_of_zero_and_one_keeps_everything(top_p: float) -> None:
    logits = random_logits(3, 50)
    before = logits.clone()

    modify_logits_for_top_p_filtering(logits, top_p)
    modify_logits_for_top_k_filtering(logits, 0)

    assert torch.equal(logits, before)


def test_tokens_of_equal_logit_are_kept_or_dropped_together() -> None:
    for_top_k = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    for_top_p = torch.zeros(1, 4)

    modify_logits_for_top_k_filtering(for_top_k, 2)
    modify_logits_for_top_p_filtering(for_top_p, 0.5)

    assert for_top_k.isfinite().tolist() == [[False, True, True, True, False]]
    assert for_top_p.isfinite().tolist() == [[True] * 4]


@pytest.mark.parametrize("scale", [0.0, 0.05, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("decimals", [0, 6])
def test_candidate_lists_choose_as_the_whole_vocabulary_does(scale: float, decimals: int) -> None:
    # Flat and peaked rows with many equals go through every length of list.
    logits = random_logits(48, 9000, scale).round(decimals=decimals)
    exponents = to_exponents(logits, max_of_rows(logits)[0])
    top_k = torch.tensor([0, 5, 63, 64, 1500, 8999]).repeat(8)
    top_p = torch.tensor([1.0, 0.5, 0.9, 0.99], dtype=torch.float64).repeat_interleave(12)
    top_p[0] = 0.3
    uniforms = torch.rand(48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    no_thresholds = torch.full((48,), -torch.inf)

    tokens, thresholds = draw_truncated(exponents, no_thresholds, Truncation(top_k, top_p), uniforms)

    assert tokens.tolist() == draw(exponents, thresholds, uniforms).tolist()
    for row in range(48):
        filtered = logits[row : row + 1].clone()
        modify_logits_for_top_k_filtering(filtered, int(top_k[row]))
        modify_logits_for_top_p_filtering(filtered, float(top_p[row]))
        assert torch.equal(filtered[0].isfinite(), exponents[row] >= thresholds[row])


def test_top_p_filter_takes_logits_of_half_width() -> None:
    wide = random_logits(3, 50).bfloat16().float()
    half = wide.bfloat16()

    modify_logits_for_top_p_filtering(wide, 0.5)
    modify_logits_for_top_p_filtering(half, 0.5)

    assert torch.equal(half.float(), wide)
