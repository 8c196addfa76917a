"""What beam search chooses from: each beam's most likely next tokens with their log-probabilities.

Order as in transformers: log-softmax of the model's logits first, then minimum length, bad words and penalties on the
log-probabilities, which are not normalized again. Knows nothing of beams.
Letters: R rows, V padded vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kilotron.errors import KilotronError, NumericalError
from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.log_probs import list_top, sum_of_rows, to_log_probs
from kilotron.sampling.row_edits import apply_edits
from kilotron.sampling.sampling_table import RowFlags, SamplingTable

# Bounds the temporary tensors of log-probs in double precision.
_CHUNK_ELEMENTS = 2**22


class CandidateLists(NamedTuple):
    """What one call gave."""

    rows: list[list[tuple[int, float]]]
    """Per row (token id, log-prob): the most likely first, of equals the lowest id; impossible tokens are left out."""
    faults: dict[int, KilotronError]
    """Row -> what is wrong with it. Its list is empty."""


@torch.inference_mode()
def list_candidates(
    table: SamplingTable,
    kernels: KernelBackend,
    logits: Tensor,
    slots: Sequence[int],
    positions: Sequence[int],
    counts: Sequence[int],
) -> CandidateLists:
    """The most likely next tokens of each row, a function of its logits, parameters and history alone.

    Args:
        table: parameters of the slots.
        kernels: at work where the logits are.
        logits: [R, V] float.
        slots: each row's slot in the table.
        positions: the absolute position at which each row's new token will stand.
        counts: how many candidates of each row.
    """
    found = CandidateLists([], {})
    size = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    for first in range(0, len(slots), size):
        some = slice(first, first + size)
        log_probs = _log_probs(table, kernels, logits[some])
        is_sound = ~torch.isnan(log_probs[:, 0])
        _apply_edits(table, log_probs, slots[some], positions[some])
        rows = torch.arange(len(log_probs), device=log_probs.device)
        log_probs[~is_sound] = -torch.inf
        ids, values = list_top(kernels, log_probs, rows, max(counts[some]))
        for row, (row_ids, row_values) in enumerate(zip(ids.tolist(), values.tolist(), strict=True)):
            listed = sorted((-value, token) for token, value in zip(row_ids, row_values, strict=True))
            possible = [(token, -negated) for negated, token in listed[: counts[first + row]] if negated < torch.inf]
            found.rows.append(possible)
        for row in torch.nonzero(~is_sound).flatten().tolist():
            found.faults[first + row] = NumericalError("the model's logits are not finite")
    return found


def _log_probs(table: SamplingTable, kernels: KernelBackend, logits: Tensor) -> Tensor:
    """[R, V] -> [R, real tokens] float32 log-probs; NaN for rows that are not finite."""
    logits = logits[:, : table.vocab_size].detach().float().contiguous()
    return to_log_probs(logits, *sum_of_rows(kernels, logits))


def _apply_edits(table: SamplingTable, log_probs: Tensor, slots: Sequence[int], positions: Sequence[int]) -> None:
    """Changes log-probs as the rows' parameters say."""
    edited = [row for row, flags in enumerate(table.read(slots)["flags"].tolist()) if flags & RowFlags.EDITED]
    if edited:
        edits = [table.edits_of(slots[row]) for row in edited]
        apply_edits(log_probs, edited, edits, [positions[row] for row in edited])
