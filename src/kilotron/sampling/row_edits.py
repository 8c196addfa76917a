"""Sparse changes of a row's logits: allowed ids, bias, minimum length, bad words, penalties.

Each row that asks for any holds a `RowEdits` on the host; `apply_edits` makes one pass over the rows of a step that
have one. Costs grow with the tokens named and the tokens seen, not with the vocabulary.
Letters: R rows, V padded vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from kilotron.sampling_params import SamplingParams

_NO_IDS = np.empty(0, dtype=np.int64)


class RowEdits:
    """What one request changes about its logits, and the history that this depends on.

    Ids outside the vocabulary have no logit, so whatever is said of them has no effect.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_ids: Sequence[int],
        generated_ids: Sequence[int],
        end_ids: frozenset[int],
        bad_word_ids: Sequence[Sequence[int]],
        vocab_size: int,
    ) -> None:
        self.allowed: np.ndarray | None = None
        if params.allowed_token_ids is not None:
            self.allowed = _real_ids(params.allowed_token_ids, vocab_size)
        bias = {token_id: value for token_id, value in params.logit_bias.items() if token_id < vocab_size}
        self.bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self.bias_values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self._end_ids = _real_ids(end_ids, vocab_size)
        # The token after `min_tokens` generated ones is the first that may end the text.
        self._first_ending_position = len(prompt_ids) + params.min_tokens
        words = [tuple(word) for word in bad_word_ids if word and 0 <= word[-1] < vocab_size]
        self._bad_ids = _real_ids([word[0] for word in words if len(word) == 1], vocab_size)
        self._bad_sequences = [word for word in words if len(word) > 1]
        self._tail_length = max((len(word) - 1 for word in self._bad_sequences), default=0)
        self._tail = self._cut([*prompt_ids, *generated_ids]) if self._tail_length else []
        self.penalties = Penalties(params, prompt_ids, generated_ids, vocab_size) if Penalties.has_any(params) else None

    def record(self, token_id: int) -> None:
        """Takes note of a token just generated."""
        if self._tail_length:
            self._tail = self._cut([*self._tail, token_id])
        if self.penalties:
            self.penalties.record(token_id)

    def forbidden_at(self, position: int) -> np.ndarray:
        """Ids that must not stand at the position; int64, possibly with repetitions."""
        parts = [self._bad_ids]
        if position < self._first_ending_position:
            parts.append(self._end_ids)
        completing = [word[-1] for word in self._bad_sequences if self._ends_with(word[:-1])]
        parts.append(np.array(completing, dtype=np.int64))
        return np.concatenate(parts)

    def _ends_with(self, ids: tuple[int, ...]) -> bool:
        return self._tail[-len(ids) :] == list(ids)

    def _cut(self, ids: list[int]) -> list[int]:
        return ids[-self._tail_length :]


class Penalties:
    """Repetition, frequency and presence penalties of one row, and how often each token was seen."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], generated_ids: Sequence[int], vocab_size: int
    ) -> None:
        self.factors = np.array(
            [params.repetition_penalty, params.frequency_penalty, params.presence_penalty], dtype=np.float32
        )
        """[3] float32: repetition, frequency, presence."""
        self._vocab_size = vocab_size
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.empty(64, dtype=np.float32)
        for token_id in dict.fromkeys(prompt_ids):
            self._add(token_id, 0)
        for token_id, count in Counter(generated_ids).items():
            self._add(token_id, count)

    @staticmethod
    def has_any(params: SamplingParams) -> bool:
        """Whether the params ask for any penalty."""
        return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0

    @property
    def seen_ids(self) -> np.ndarray:
        """Ids in prompt or output, each once; int64."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        """How often each seen id was generated; float32."""
        return self._counts[: len(self._places)]

    def record(self, token_id: int) -> None:
        """Counts a token just generated."""
        self._add(token_id, 1)

    def _add(self, token_id: int, count: int) -> None:
        if not 0 <= token_id < self._vocab_size:  # a placeholder for something that is not text
            return
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
            self._ids[place], self._counts[place] = token_id, 0
        self._counts[place] += count


def apply_edits(logits: Tensor, rows: Sequence[int], edits: Sequence[RowEdits], positions: Sequence[int]) -> None:
    """Changes the given rows of [R, V] logits in place: allowed ids, bias, forbidden ids, penalties, in this order.

    Row `rows[i]` is changed by `edits[i]` for a token at `positions[i]`.
    """
    _keep_allowed(logits, rows, edits)
    biased = _Entries(logits, rows, [edit.bias_ids for edit in edits])
    biased.write(biased.read() + biased.send(np.concatenate([edit.bias_values for edit in edits])))
    pairs = zip(edits, positions, strict=True)
    forbidden = _Entries(logits, rows, [edit.forbidden_at(position) for edit, position in pairs])
    forbidden.write(torch.full_like(forbidden.columns, -torch.inf, dtype=logits.dtype))
    penalized = [(row, edit.penalties) for row, edit in zip(rows, edits, strict=True) if edit.penalties]
    if penalized:
        _penalize(logits, [row for row, _ in penalized], [penalties for _, penalties in penalized])


class _Entries:
    """Some columns of some rows of a matrix, read and written as one list."""

    def __init__(self, matrix: Tensor, rows: Sequence[int], columns: Sequence[np.ndarray]) -> None:
        self._matrix = matrix
        self._counts = [len(ids) for ids in columns]
        self._rows = self.send(self.spread(np.array(rows, dtype=np.int64)))
        self.columns = self.send(np.concatenate(columns))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value per row -> one per entry."""
        return np.repeat(values, self._counts, axis=0)

    def send(self, values: np.ndarray) -> Tensor:
        """Host values -> a tensor where the matrix is."""
        return torch.from_numpy(values).to(self._matrix.device)

    def read(self) -> Tensor:
        return self._matrix[self._rows, self.columns]

    def write(self, values: Tensor) -> None:
        self._matrix[self._rows, self.columns] = values


def _keep_allowed(logits: Tensor, rows: Sequence[int], edits: Sequence[RowEdits]) -> None:
    limited = [(row, edit.allowed) for row, edit in zip(rows, edits, strict=True) if edit.allowed is not None]
    if not limited:
        return
    limited_rows = [row for row, _ in limited]
    allowed = _Entries(logits, limited_rows, [ids for _, ids in limited])
    kept = allowed.read()
    logits[torch.tensor(limited_rows, device=logits.device)] = -torch.inf
    allowed.write(kept)


def _penalize(logits: Tensor, rows: Sequence[int], penalties: Sequence[Penalties]) -> None:
    entries = _Entries(logits, rows, [row.seen_ids for row in penalties])
    counts = entries.send(np.concatenate([row.counts for row in penalties]))
    factors = entries.send(entries.spread(np.stack([row.factors for row in penalties])))
    repetition, frequency, presence = factors.unbind(1)
    values = entries.read()
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * counts
    values -= presence * (counts > 0)
    entries.write(values)


def _real_ids(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """Those in the vocabulary, each once; [n] int64."""
    real = sorted({token_id for token_id in ids if 0 <= token_id < vocab_size})
    return np.array(real, dtype=np.int64) if real else _NO_IDS
