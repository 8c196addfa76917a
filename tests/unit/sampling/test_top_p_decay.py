"""Top-p that shrinks with each generated token, by each row's own count."""

import numpy as np
import pytest
import torch

from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.sampling_table import top_p_at
from kilotron.sampling_params import SamplingParams
from unit.sampling.sampling_support import Request, make_table, sample


def test_top_p_decays_with_each_generated_token_down_to_its_bound() -> None:
    params = SamplingParams(top_p=0.8, top_p_decay=0.5, top_p_bound=0.15)
    table = make_table([Request(params), Request(SamplingParams(top_p=0.8))], 10)
    found = [top_p_at(table.read([0, 1]), np.array([3 + step, 3 + step])).tolist() for step in range(4)]
    assert found == [[0.8, 0.8], [0.4, 0.8], [0.2, 0.8], [0.15, 0.8]]


def test_a_decay_of_zero_or_one_leaves_top_p() -> None:
    for decay in (0.0, 1.0):
        table = make_table([Request(SamplingParams(top_p=0.8, top_p_decay=decay))], 10)
        assert top_p_at(table.read([0]), np.array([9])).tolist() == [0.8]


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_what_is_drawn_is_what_the_decayed_top_p_leaves(kernels: KernelBackend, top_p: float) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    for num_generated in (0, 3, 30):
        decaying = SamplingParams(top_p=top_p, top_p_decay=0.7)
        fixed = SamplingParams(top_p=max(top_p * 0.7**num_generated, 1e-30))
        for seed in range(20):
            drawn = [
                sample(kernels, logits, [Request(params, seed=seed, generated_ids=[5] * num_generated)]).token_ids
                for params in (decaying, fixed)
            ]
            assert drawn[0] == drawn[1]


def test_a_top_p_decayed_to_nothing_is_greedy(kernels: KernelBackend) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    request = Request(SamplingParams(top_p=0.5, top_p_decay=0.01), seed=4, generated_ids=[5] * 400)
    assert sample(kernels, logits, [request]).token_ids == logits.argmax(1).tolist()
