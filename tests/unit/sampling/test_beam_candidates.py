"""What beam search chooses from: log-softmax, then edits, then the greatest, of equals the lowest ids."""

import math

import pytest
import torch
from torch import Tensor

from kilotron.errors import NumericalError
from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.beam_candidates import CandidateLists, list_candidates
from kilotron.sampling.log_probs import score_tokens
from kilotron.sampling_params import SamplingParams
from unit.sampling.sampling_support import Request, make_table

BEAMS = SamplingParams(beam_width=2)


def list_of(kernels: KernelBackend, logits: Tensor, requests: list[Request], counts: list[int]) -> CandidateLists:
    table = make_table(requests, logits.shape[1])
    positions = [request.position for request in requests]
    return list_candidates(table, kernels, logits, range(len(requests)), positions, counts)


def random_logits(rows: int, vocab_size: int) -> Tensor:
    return torch.randn((rows, vocab_size), generator=torch.Generator().manual_seed(3)) * 4


def test_candidates_are_the_greatest_log_probs(kernels: KernelBackend) -> None:
    logits = random_logits(3, 500)
    found = list_of(kernels, logits.clone(), [Request(BEAMS)] * 3, [4, 8, 6])
    values, ids = logits.double().log_softmax(-1).topk(8)
    for row, count in enumerate((4, 8, 6)):
        assert [token for token, _ in found.rows[row]] == ids[row, :count].tolist()
        assert [value for _, value in found.rows[row]] == pytest.approx(values[row, :count].tolist(), abs=1e-5)


def test_their_log_probs_are_those_that_scoring_gives(kernels: KernelBackend) -> None:
    logits = random_logits(1, 300)
    candidates = list_of(kernels, logits.clone(), [Request(BEAMS)], [10]).rows[0]
    for token, log_prob in candidates:
        assert score_tokens(kernels, logits, [token], 0, 300)[0] == [log_prob]


def test_of_equals_the_lowest_ids_come_first(kernels: KernelBackend) -> None:
    logits = torch.zeros(1, 100)
    logits[0, 70] = 1.0
    candidates = list_of(kernels, logits, [Request(BEAMS)], [4]).rows[0]
    assert [token for token, _ in candidates] == [70, 0, 1, 2]


def test_edits_change_log_probs_and_nothing_is_normalized_again(kernels: KernelBackend) -> None:
    logits = random_logits(1, 50)
    log_probs = logits.double().log_softmax(-1)[0]
    best, second = log_probs.topk(2).indices.tolist()
    params = SamplingParams(beam_width=2, min_tokens=4, repetition_penalty=1.5)
    request = Request(params, prompt_ids=[second], end_ids=frozenset({best}))
    candidates = dict(list_of(kernels, logits, [request], [50]).rows[0])
    assert best not in candidates
    assert candidates[second] == pytest.approx(log_probs[second].item() * 1.5, abs=1e-5)
    assert sum(math.exp(value) for value in candidates.values()) < 1 - math.exp(log_probs[best]) + 1e-5


def test_a_row_gives_the_same_bits_alone_and_in_a_crowd(kernels: KernelBackend) -> None:
    logits = random_logits(9, 1000)
    params = SamplingParams(beam_width=2, repetition_penalty=1.2, bad_words=["x"])
    requests = [Request(params if row % 2 else BEAMS, bad_word_ids=((5,), (3, 7))) for row in range(9)]
    together = list_of(kernels, logits.clone(), requests, [6] * 9)
    alone = [list_of(kernels, logits[row : row + 1].clone(), [requests[row]], [6]).rows[0] for row in range(9)]
    assert together.rows == alone


def test_a_row_that_is_not_finite_is_a_fault_and_its_neighbours_are_not(kernels: KernelBackend) -> None:
    logits = random_logits(3, 40)
    clean = list_of(kernels, logits.clone(), [Request(BEAMS)] * 3, [4] * 3)
    logits[1, 7] = math.nan
    found = list_of(kernels, logits, [Request(BEAMS)] * 3, [4] * 3)
    assert found.rows == [clean.rows[0], [], clean.rows[2]]
    assert [type(fault) for fault in found.faults.values()] == [NumericalError]
    assert list(found.faults) == [1]


def test_impossible_tokens_are_left_out(kernels: KernelBackend) -> None:
    params = SamplingParams(beam_width=2, allowed_token_ids=[3, 4])
    candidates = list_of(kernels, random_logits(1, 40), [Request(params)], [8]).rows[0]
    assert sorted(token for token, _ in candidates) == [3, 4]


def test_a_row_that_is_not_finite_is_a_fault_whatever_its_edits_are(kernels: KernelBackend) -> None:
    logits = torch.full((1, 50), math.nan)
    request = Request(SamplingParams(beam_width=2, allowed_token_ids=[7, 8]))
    found = list_of(kernels, logits, [request], [4])
    assert (found.rows, type(found.faults[0])) == ([[]], NumericalError)
