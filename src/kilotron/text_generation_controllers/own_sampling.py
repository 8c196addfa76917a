"""RowSampling: calls a controller's own `sample_from_logits` for one row after the other, and scores what it chose.

Knows how a row is sampled without an override too, for overrides that ask for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kilotron.errors import SamplingParamsError
from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.sampler import SampledTokens, Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.sampling_params import SamplingParams

SampleFromLogits = Callable[[Tensor, SamplingParams, int], Any]


class _RowAtHand(NamedTuple):
    """The row that an override is being asked about."""

    params: SamplingParams
    slot: int
    position: int


class RowSampling:
    """One controller's.

    Args:
        sampler: the controller's.
        kernels: at work where the logits are.
        vocab_size: number of real tokens.
    """

    def __init__(self, sampler: Sampler, kernels: KernelBackend, vocab_size: int) -> None:
        self._sampler = sampler
        self._kernels = kernels
        self._vocab_size = vocab_size
        self._at_hand: _RowAtHand | None = None

    def sample(
        self,
        sample_from_logits: SampleFromLogits,
        logits: Tensor,
        params: Sequence[SamplingParams],
        slots: Sequence[int],
        positions: Sequence[int],
    ) -> SampledTokens:
        """One token per row of [R, V], each by a call of its own."""
        sampled = SampledTokens([], [], [], {})
        for row, at_hand in enumerate(map(_RowAtHand, params, slots, positions)):
            raw = logits[row : row + 1].clone() if at_hand.params.return_log_probs else None
            self._at_hand = at_hand
            try:
                token_id = self._checked(sample_from_logits(logits[row : row + 1], at_hand.params, self._vocab_size))
            finally:
                self._at_hand = None
            log_prob = top_n = None
            if raw is not None:
                log_probs, listed = self._sampler.score(raw, [token_id], at_hand.params.top_n_logprobs)
                log_prob, top_n = log_probs[0], None if listed is None else listed[0]
            sampled.token_ids.append(token_id)
            sampled.log_probs.append(log_prob)
            sampled.top_n.append(top_n)
        return sampled

    def sample_plainly(self, logits: Tensor, params: SamplingParams) -> Tensor:
        """[R, V] -> [R] int64 as the params say; for the row at hand with its seed, its place and its history."""
        at_hand = self._at_hand
        if at_hand is not None and params is at_hand.params:
            sampled = self._sampler.sample(logits, [at_hand.slot], [at_hand.position])
        else:
            sampled = self._sample_anew(logits, params, at_hand.position if at_hand is not None else 0)
        for fault in sampled.faults.values():
            raise fault
        return torch.tensor(sampled.token_ids, dtype=torch.int64)

    def _sample_anew(self, logits: Tensor, params: SamplingParams, position: int) -> SampledTokens:
        """As if each row were the beginning of a text."""
        slots = range(len(logits))
        table = SamplingTable(max_requests=len(logits), vocab_size=self._vocab_size, device=self._kernels.device)
        drawn = np.random.default_rng(params.seed if params.seed is None else params.seed % 2**64)
        for slot in slots:
            seed = int(drawn.integers(2**63))
            table.admit(slot, params, seed=seed, prompt_ids=(), generated_ids=(), end_ids=frozenset(), bad_word_ids=())
        return Sampler(table, self._kernels).sample(logits, slots, [position] * len(logits))

    def _checked(self, chosen: Any) -> int:
        token_ids = torch.as_tensor(chosen).reshape(-1).tolist()
        if len(token_ids) != 1 or not 0 <= token_ids[0] < self._vocab_size or int(token_ids[0]) != token_ids[0]:
            raise SamplingParamsError(
                f"sample_from_logits gave {chosen!r} for one row; it must give one token id from 0 to "
                f"{self._vocab_size - 1}"
            )
        return int(token_ids[0])
