"""Tests of log-probs against log-softmax in float64, and of the lists of most likely tokens."""

import math

import pytest
import torch

from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.log_probs import score_tokens


def random_logits(rows: int, tokens: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(rows, tokens, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("num_tokens", [2, 333, 50_257])
def test_log_probs_are_log_softmax(kernels: KernelBackend, num_tokens: int, scale: float) -> None:
    logits = random_logits(8, num_tokens, scale)
    targets = [*range(7), num_tokens - 1] if num_tokens > 8 else [0, 1] * 4

    log_probs, top_n = score_tokens(kernels, logits, targets, 0, num_tokens)

    expected = torch.log_softmax(logits.double(), 1)[range(8), targets]
    assert log_probs == pytest.approx(expected.tolist(), abs=1e-5)
    assert top_n is None


def test_top_n_lists_the_most_likely_and_the_target_with_the_identical_float(kernels: KernelBackend) -> None:
    logits = random_logits(50, 333)
    targets = [*logits.argmax(1)[:25].tolist(), *range(25)]
    expected = torch.log_softmax(logits.double(), 1)

    log_probs, top_n = score_tokens(kernels, logits, targets, 4, 333)

    assert top_n is not None
    for row, listed in enumerate(top_n):
        best = expected[row].topk(4)
        assert list(listed)[:4] == best.indices.tolist()
        assert list(listed.values())[:4] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert listed[targets[row]] == log_probs[row]
        assert len(listed) == 4 + (targets[row] not in best.indices.tolist())


def test_of_equals_the_lowest_ids_are_listed_first(kernels: KernelBackend) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0, 3.0, 1.0]])

    _, top_n = score_tokens(kernels, logits, [6], 5, 8)

    assert top_n is not None
    assert list(top_n[0]) == [6, 1, 3, 2, 4]


def test_a_shorter_list_is_the_head_of_a_longer_one(kernels: KernelBackend) -> None:
    logits = random_logits(30, 200).round()  # many equals
    targets = logits.argmax(1).tolist()

    _, long = score_tokens(kernels, logits, targets, 60, 200)

    for top_n in (1, 2, 7, 33):
        _, short = score_tokens(kernels, logits, targets, top_n, 200)
        assert [list(row.items()) for row in short or []] == [list(row.items())[:top_n] for row in long or []]


def test_more_than_all_tokens_lists_all(kernels: KernelBackend) -> None:
    _, top_n = score_tokens(kernels, random_logits(1, 5), [0], 1000, 5)

    assert top_n is not None
    assert len(top_n[0]) == 5


def test_padding_has_no_mass_and_is_never_listed(kernels: KernelBackend) -> None:
    logits = random_logits(3, 20)
    padded = torch.cat([logits, torch.full((3, 12), 50.0)], dim=1)

    assert score_tokens(kernels, padded, [1, 2, 3], 20, 20) == score_tokens(kernels, logits, [1, 2, 3], 20, 20)


def test_impossible_tokens_are_left_out_of_lists(kernels: KernelBackend) -> None:
    logits = torch.tensor([[1.0, -torch.inf, 2.0, -torch.inf]])

    log_probs, top_n = score_tokens(kernels, logits, [0], 4, 4)

    assert top_n is not None
    assert list(top_n[0]) == [2, 0]
    assert score_tokens(kernels, logits, [1], 0, 4)[0] == [-math.inf]
    assert log_probs[0] == pytest.approx(1 - math.log(math.exp(1) + math.exp(2)), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_gives_nan_and_spoils_no_other(kernels: KernelBackend, bad: float) -> None:
    logits = random_logits(3, 100)
    clean, _ = score_tokens(kernels, logits, [1, 2, 3], 0, 100)
    logits[1, 50] = bad

    log_probs, _ = score_tokens(kernels, logits, [1, 2, 3], 3, 100)

    assert math.isnan(log_probs[1])
    assert [log_probs[0], log_probs[2]] == [clean[0], clean[2]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_scores_the_same_bits_alone_in_a_crowd_and_on_any_number_of_threads(
    kernels: KernelBackend, threads: int
) -> None:
    logits = random_logits(40, 65_537)  # more than one chunk
    targets = list(range(40))
    log_probs, top_n = score_tokens(kernels, logits, targets, 3, 65_537)

    torch.set_num_threads(threads)

    for row in range(0, 40, 3):
        alone = score_tokens(kernels, logits[row : row + 1], targets[row : row + 1], 3, 65_537)
        assert alone == ([log_probs[row]], [top_n[row] if top_n else {}])


def test_half_precision_logits_are_scored_in_full_precision(kernels: KernelBackend) -> None:
    logits = random_logits(2, 100).bfloat16()

    assert score_tokens(kernels, logits, [1, 2], 0, 100) == score_tokens(kernels, logits.float(), [1, 2], 0, 100)
