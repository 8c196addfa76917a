"""One token per row out of logits.

Order of what is done to a row: [raw log-probs are taken here] allowed ids, logit bias, minimum length, bad words,
penalties (repetition over prompt and output, then frequency and presence over output), temperature, min-p, top-k,
top-p [processed log-probs are taken here], draw. A greedy row (temperature 0 or top-k 1) takes the greatest logit after
the penalties, of equals the lowest id; temperature and what follows do not touch it, nor its processed log-probs.

A row's token is a function of its logits, parameters, seed and position alone; see
`kernels/reference/exact_weights.py` for how.
Letters: R rows, V padded vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kilotron.errors import ConfigError, KilotronError, NumericalError, SamplingParamsError
from kilotron.kernels.interface import KernelBackend, TemperedRows
from kilotron.sampling.beam_candidates import CandidateLists, list_candidates
from kilotron.sampling.log_probs import score_tokens
from kilotron.sampling.logits_filters import Truncation, draw_truncated
from kilotron.sampling.random_uniform import uniforms
from kilotron.sampling.row_edits import apply_edits
from kilotron.sampling.sampling_table import RowFlags, SamplingTable, top_p_at

# Bounds the temporary tensors of processed logits; buffers of this size are reused by the allocator.
_CHUNK_ELEMENTS = 2**20
_LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs")


class SampledTokens(NamedTuple):
    """What one call gave; the lists have one entry per row."""

    token_ids: list[int]
    log_probs: list[float | None]
    """Of the sampled tokens; None where not asked."""
    top_n: list[dict[int, float] | None]
    """Most likely ids and the sampled one; None where not asked."""
    faults: dict[int, KilotronError]
    """Row -> what is wrong with it. Its token id means nothing, its log-probs are None."""


class Sampler:
    """Samples from logits as the rows' slots in the table say.

    Args:
        table: parameters of the slots.
        kernels: at work where the logits are.
        logprobs_mode: "raw_logprobs" reports the model's own log-probs, "processed_logprobs" those after all filters.
    """

    def __init__(self, table: SamplingTable, kernels: KernelBackend, *, logprobs_mode: str = "raw_logprobs") -> None:
        if logprobs_mode not in _LOGPROBS_MODES:
            raise ConfigError(f"logprobs_mode must be one of {', '.join(_LOGPROBS_MODES)}, not {logprobs_mode!r}")
        self._table = table
        self._kernels = kernels
        self._scores_raw = logprobs_mode == "raw_logprobs"

    @torch.inference_mode()
    def sample(self, logits: Tensor, slots: Sequence[int], positions: Sequence[int]) -> SampledTokens:
        """One token per row.

        Args:
            logits: [R, V] float32; may be overwritten.
            slots: each row's slot in the table.
            positions: the absolute position at which each row's new token will stand.
        """
        if not len(slots):
            return SampledTokens([], [], [], {})
        logits = logits.detach().float()
        columns = self._table.read(slots)
        if logits.shape[1] > self._table.vocab_size:
            logits[:, self._table.vocab_size :] = -torch.inf
        step = _Step(self._kernels, logits, columns, slots, positions)
        flags = int(np.bitwise_or.reduce(columns["flags"]))
        if not flags:
            return step.result()
        if flags & RowFlags.EDITED:
            step.edit(self._table, keeps_raw=self._scores_raw)
        if flags & RowFlags.RANDOM:
            step.draw(writes_processed=not self._scores_raw and bool(flags & RowFlags.SCORED))
        if flags & RowFlags.SCORED:
            step.score(self._table.vocab_size)
        return step.result()

    def list_candidates(
        self, logits: Tensor, slots: Sequence[int], positions: Sequence[int], counts: Sequence[int]
    ) -> CandidateLists:
        """Most likely next tokens per row, for beam search; see `beam_candidates.list_candidates`."""
        return list_candidates(self._table, self._kernels, logits, slots, positions, counts)

    def score(
        self, logits: Tensor, targets: Sequence[int], top_n: int
    ) -> tuple[list[float], list[dict[int, float]] | None]:
        """Log-probs of given tokens, bit for bit those that `sample` reports raw; see `score_tokens`."""
        return score_tokens(self._kernels, logits, targets, top_n, self._table.vocab_size)


class _Step:
    """The rows of one call on their way from logits to tokens. At first these are the greedy ones.

    Rows with NaN or +Inf, or without any finite logit, are faults.
    """

    def __init__(
        self,
        kernels: KernelBackend,
        logits: Tensor,
        columns: np.ndarray,
        slots: Sequence[int],
        positions: Sequence[int],
    ) -> None:
        self._kernels = kernels
        self._logits = logits
        self._columns = columns
        self._slots = slots
        self._positions = positions
        self._best, ids = kernels.max_of_rows(logits)
        self._token_ids = ids.cpu().numpy()
        self._raw: tuple[Tensor, Tensor] | None = None  # rows and their logits before the edits
        self._log_probs: list[float | None] = [None] * len(slots)
        self._top_n: list[dict[int, float] | None] = [None] * len(slots)
        self._faults: dict[int, KilotronError] = {}
        is_finite = np.isfinite(self._best.cpu().numpy())
        if not is_finite.all():
            for row in np.flatnonzero(~is_finite).tolist():
                self._token_ids[row] = 0
                maximum = self._best[row].item()
                self._faults[row] = NumericalError(f"the model's logits are not finite (their maximum is {maximum})")

    def result(self) -> SampledTokens:
        return SampledTokens(self._token_ids.tolist(), self._log_probs, self._top_n, self._faults)

    def edit(self, table: SamplingTable, *, keeps_raw: bool) -> None:
        """Applies the sparse edits; a row that has nothing left is a fault. On demand keeps what scoring must see."""
        rows = self._rows_with(RowFlags.EDITED)
        if not len(rows):
            return
        if keeps_raw:
            scored = self._send(self._rows_with(RowFlags.EDITED | RowFlags.SCORED))
            self._raw = scored, self._logits.index_select(0, scored)
        numbers = rows.tolist()
        edits = [table.edits_of(self._slots[row]) for row in numbers]
        apply_edits(self._logits, numbers, edits, [self._positions[row] for row in numbers])
        index = self._send(rows)
        best, ids = self._kernels.max_of_rows(self._logits.index_select(0, index))
        self._best[index] = best
        self._token_ids[rows] = ids.cpu().numpy()
        for row in rows[~torch.isfinite(best).cpu().numpy()].tolist():
            self._token_ids[row] = 0
            self._faults[row] = SamplingParamsError(
                "no token is left to choose from: the sampling parameters forbid every possible one "
                f"(greatest logit after all filters: {self._best[row].item()})"
            )

    def draw(self, *, writes_processed: bool) -> None:
        """Draws the tokens of the rows that are not greedy, and on demand writes their processed logits."""
        rows = self._rows_with(RowFlags.RANDOM)
        is_truncated = (self._columns["flags"][rows] & RowFlags.TRUNCATED) > 0
        for group in (rows[~is_truncated], rows[is_truncated]):
            if len(group):
                tempered, thresholds = self._draw_group(group)
                if writes_processed:
                    self._write_processed(tempered, thresholds)

    def _draw_group(self, rows: np.ndarray) -> tuple[TemperedRows, Tensor]:
        """Draws for rows that are all truncated or all not; returns what processed logits are made of."""
        columns = self._columns[rows]
        index = self._send(rows)
        positions = np.asarray(self._positions, dtype=np.int64)[rows]
        numbers = self._send(uniforms(columns["seed"], positions))
        inverse_temperature = self._send(columns["inverse_temperature"])
        tempered = TemperedRows(self._logits, index, self._best[index], inverse_temperature)
        thresholds = self._send(columns["min_exponent"])
        if columns["flags"][0] & RowFlags.TRUNCATED:
            limits = Truncation(self._send(columns["top_k"]), self._send(top_p_at(columns, positions)))
            tokens, thresholds = draw_truncated(self._kernels, tempered, thresholds, limits, numbers)
        else:
            has_thresholds = bool(np.isfinite(columns["min_exponent"]).any())
            tokens = self._kernels.draw(tempered, thresholds if has_thresholds else None, numbers)
        self._token_ids[rows] = tokens.cpu().numpy()
        return tempered, thresholds

    def _write_processed(self, rows: TemperedRows, thresholds: Tensor) -> None:
        size = max(1, _CHUNK_ELEMENTS // self._logits.shape[1])
        for start in range(0, len(thresholds), size):
            some = slice(start, start + size)
            exponents = rows.take(some).exponents()
            kept = torch.where(exponents >= thresholds[some, None], exponents, -torch.inf)
            self._logits.index_copy_(0, rows.rows[some], kept)

    def score(self, vocab_size: int) -> None:
        """Log-probs of the sampled tokens, in groups of equal `top_n`."""
        if self._raw is not None:
            self._logits.index_copy_(0, *self._raw)
        rows = self._rows_with(RowFlags.SCORED)
        for top_n in np.unique(self._columns["top_n"][rows]).tolist():
            group = rows[self._columns["top_n"][rows] == top_n]
            is_all = len(group) == len(self._logits)
            chosen = self._logits if is_all else self._logits.index_select(0, self._send(group))
            token_ids = self._token_ids[group].tolist()
            log_probs, listed = score_tokens(self._kernels, chosen, token_ids, top_n, vocab_size)
            for place, row in enumerate(group.tolist()):
                self._log_probs[row] = log_probs[place]
                self._top_n[row] = listed[place] if listed else None

    def _rows_with(self, flags: int) -> np.ndarray:
        """Rows that have all the flags and no fault."""
        has_flag = (self._columns["flags"] & flags) == flags
        has_flag[list(self._faults)] = False
        return np.flatnonzero(has_flag)

    def _send(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.copy()).to(self._logits.device)
