"""Per-slot sampling parameters as columns, filled at admission and read every step. Knows nothing of logits."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from kilotron.errors import ConfigError
from kilotron.kernels.reference.exact_weights import MAX_VOCABULARY
from kilotron.sampling.row_edits import Penalties, RowEdits
from kilotron.sampling_params import SamplingParams

_SEED_MASK = 0xFFFF_FFFF_FFFF_FFFF
# Its inverse is finite as float32. So low a temperature is greedy, but for equals.
_LEAST_TEMPERATURE = 1e-30
# So low a top-p keeps the most likely token alone; 0 would keep all.
_LEAST_TOP_P = 1e-30

_COLUMNS = np.dtype(
    [
        ("flags", np.uint8),
        ("seed", np.uint64),
        ("inverse_temperature", np.float32),
        ("min_exponent", np.float32),  # log(min_p)
        ("top_k", np.int64),  # 0 keeps all
        ("top_p", np.float64),  # 1 keeps all
        ("top_p_decay", np.float64),  # 1 leaves top_p as it is
        ("top_p_bound", np.float64),
        ("prompt_length", np.int64),
        ("top_n", np.int64),
    ]
)


class RowFlags:
    """What a row needs beyond taking the greatest logit. Plain numbers: an enum's take ten times as long to combine."""

    RANDOM: Final = 1
    """A draw."""
    TRUNCATED: Final = 2
    """Top-k or top-p before the draw."""
    EDITED: Final = 4
    """Sparse changes of its logits."""
    SCORED: Final = 8
    """Log-probs."""


class SamplingTable:
    """The sampling parameters of every slot.

    Args:
        max_requests: number of slots.
        vocab_size: number of real tokens; no other is ever sampled.
        padded_vocab_size: columns of the logits, where there are more than tokens.
        device: where the logits are.
    """

    def __init__(
        self, *, max_requests: int, vocab_size: int, padded_vocab_size: int | None = None, device: torch.device
    ) -> None:
        self.vocab_size = vocab_size
        self.padded_vocab_size = vocab_size if padded_vocab_size is None else padded_vocab_size
        self.device = device
        if not 0 < vocab_size <= self.padded_vocab_size <= MAX_VOCABULARY:
            raise ConfigError(
                f"vocab_size={vocab_size}, padded_vocab_size={self.padded_vocab_size}: sampling needs "
                f"0 < vocab_size <= padded_vocab_size <= {MAX_VOCABULARY}"
            )
        self._columns = np.zeros(max_requests, dtype=_COLUMNS)
        self._edits: list[RowEdits | None] = [None] * max_requests

    def reserve(self, max_requests: int) -> None:
        """Makes room for so many slots, unless there is."""
        num_more = max_requests - len(self._edits)
        if num_more > 0:
            self._columns = np.concatenate([self._columns, np.zeros(num_more, dtype=_COLUMNS)])
            self._edits += [None] * num_more

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        *,
        seed: int,
        prompt_ids: Sequence[int],
        generated_ids: Sequence[int],
        end_ids: frozenset[int],
        bad_word_ids: Sequence[Sequence[int]],
    ) -> None:
        """Fills a slot, whatever it held. `generated_ids` is what a request had generated before a preemption."""
        flags = _flags_of(params, has_end_ids=bool(end_ids), has_bad_words=bool(bad_word_ids))
        top_k = params.top_k if params.top_k < self.vocab_size else 0
        self._columns[slot] = (
            flags,
            seed & _SEED_MASK,
            1.0 / max(params.temperature, _LEAST_TEMPERATURE),
            np.log(params.min_p) if params.min_p else -np.inf,
            top_k,
            params.top_p or 1.0,
            params.top_p_decay or 1.0,
            params.top_p_bound,
            len(prompt_ids),
            params.top_n_logprobs,
        )
        self._edits[slot] = None
        if flags & RowFlags.EDITED:
            self._edits[slot] = RowEdits(
                params,
                prompt_ids=prompt_ids,
                generated_ids=generated_ids,
                end_ids=end_ids,
                bad_word_ids=bad_word_ids,
                vocab_size=self.vocab_size,
            )

    def record(self, slots: Sequence[int], token_ids: Sequence[int]) -> None:
        """Takes note of tokens just sampled, one per slot."""
        for slot, token_id in zip(slots, token_ids, strict=True):
            edits = self._edits[slot]
            if edits is not None:
                edits.record(token_id)

    def read(self, slots: Sequence[int]) -> np.ndarray:
        """[R] records of the slots' columns: see `_COLUMNS`."""
        return self._columns[np.asarray(slots, dtype=np.int64)]

    def edits_of(self, slot: int) -> RowEdits:
        """The edits of a slot flagged EDITED."""
        edits = self._edits[slot]
        assert edits is not None
        return edits


def top_p_at(columns: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[R] float64: each row's top-p for a token at its position, after the decay of the tokens generated before."""
    is_decaying = columns["top_p_decay"] != 1.0
    top_p: np.ndarray = columns["top_p"].copy()
    for row in np.flatnonzero(is_decaying).tolist():
        column = columns[row]
        # One by one: how a power is rounded may depend on its place among many.
        decayed = float(column["top_p"]) * float(column["top_p_decay"]) ** int(positions[row] - column["prompt_length"])
        top_p[row] = max(decayed, float(column["top_p_bound"]), _LEAST_TOP_P)
    return top_p


def _flags_of(params: SamplingParams, *, has_end_ids: bool, has_bad_words: bool) -> int:
    flags = 0
    if not params.is_greedy:
        flags |= RowFlags.RANDOM
        is_decaying = params.top_p > 0.0 and 0.0 < params.top_p_decay < 1.0
        if params.top_k or 0.0 < params.top_p < 1.0 or is_decaying:
            flags |= RowFlags.TRUNCATED
    if params.return_log_probs:
        flags |= RowFlags.SCORED
    must_go_on = params.min_tokens > 0 and has_end_ids
    is_restricted = params.allowed_token_ids is not None or bool(params.logit_bias) or has_bad_words
    if must_go_on or is_restricted or Penalties.has_any(params):
        flags |= RowFlags.EDITED
    return flags
