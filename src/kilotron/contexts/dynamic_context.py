"""DynamicInferenceContext: owns the paged KV cache and turns a StepPlan into the tensors of one step.

It takes the plan as it is: which rows run and in which blocks was decided by the scheduler, on whatever rank.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kilotron.contexts.cross_table import CrossTable
from kilotron.contexts.request_table import RequestTable
from kilotron.kernels.interface import AttentionRows, KernelBackend, KVShape
from kilotron.memory.kv_storage import KVStorage
from kilotron.models.inference_batch import InferenceBatch
from kilotron.scheduling.step_plan import RowPlan, StepPlan


class DynamicInferenceContext:
    """Paged KV cache and block tables of one rank.

    Args:
        shape: size of the cache.
        kernels: the backend that allocates it and plans attention.
        max_requests: number of slots.
        max_sequence_length: most tokens of one request.
        max_encoder_length: most tokens of one request's encoder input; 0 for decoder-only models.
    """

    def __init__(
        self,
        shape: KVShape,
        kernels: KernelBackend,
        *,
        max_requests: int,
        max_sequence_length: int,
        max_encoder_length: int = 0,
    ) -> None:
        self.shape = shape
        self.max_requests = max_requests
        self.max_sequence_length = max_sequence_length
        self.storage = KVStorage(shape, kernels)
        self._kernels = kernels
        self._table = RequestTable(max_requests, -(-max_sequence_length // shape.block_size))
        self.max_encoder_length = max_encoder_length
        self._cross: CrossTable | None = None
        if max_encoder_length:
            self._cross = CrossTable(max_requests, max_encoder_length, shape.block_size, kernels)
        # Host values -> a tensor where the model is; `to` takes a microsecond even where there is nothing to do.
        self._send: Callable[[np.ndarray], Tensor] = torch.from_numpy
        if kernels.device.type != "cpu":
            self._send = lambda values: torch.from_numpy(values).to(kernels.device)

    def prepare_batch(self, plan: StepPlan) -> InferenceBatch:
        """Takes in the plan's admissions and grants, and lays its rows out as tensors."""
        for admission in plan.admissions:
            self._table.admit(admission.slot, admission.cached_block_ids)
            if self._cross is not None:
                self._cross.admit(admission)
        granted: list[int] = []
        for row in plan.rows:
            if row.block_ids:
                self._table.append(row.slot, row.block_ids)
                granted += row.block_ids
        if self._cross is not None:
            granted += self._cross.written_blocks(plan.rows)
        self.storage.clear(granted)
        return self._lay_out(plan.rows)

    def close(self) -> None:
        """Gives the cache's memory back. Idempotent."""
        self.storage.release()

    def _lay_out(self, rows: list[RowPlan]) -> InferenceBatch:
        block_size = self.shape.block_size
        token_ids = [token_id for row in rows for token_id in row.token_ids]
        slots = np.array([row.slot for row in rows], dtype=np.int64)
        starts = np.array([row.start for row in rows], dtype=np.int64)
        if len(token_ids) == len(rows):  # one token each, as in most steps: half of what follows is known already
            lengths = np.ones(len(rows), dtype=np.int64)
            positions, slot_of_token = starts, slots
        else:
            lengths = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
            firsts = np.cumsum(lengths) - lengths
            positions = np.arange(len(token_ids)) + np.repeat(starts - firsts, lengths)
            slot_of_token = np.repeat(slots, lengths)
        blocks = positions // block_size
        most_blocks = int(blocks.max()) + 1
        attention_rows = AttentionRows(starts, lengths, self._table.block_ids[slots, :most_blocks])
        block_ids = self._table.block_ids[slot_of_token, blocks]
        samples, scored = _logits_tokens(rows)
        return InferenceBatch(
            token_ids=self._send(np.array(token_ids, dtype=np.int64)),
            positions=self._send(positions),
            kv_slots=self._send(positions + (block_ids - blocks) * block_size),
            kv_layers=self.storage.layers,
            attention=self._kernels.plan_attention(attention_rows, block_size),
            logits_index=self._send(np.array(samples + scored, dtype=np.int64)),
            num_samples=len(samples),
            encoder=None if self._cross is None else self._cross.lay_out(rows, slot_of_token, self._send),
        )


def _logits_tokens(rows: list[RowPlan]) -> tuple[list[int], list[int]]:
    """Which tokens of the step need logits: the sampling rows' last ones, and the prompt tokens that score the next."""
    samples: list[int] = []
    scored: list[int] = []
    end = 0
    for row in rows:
        first, end = end, end + len(row.token_ids)
        if row.needs_logits:
            samples.append(end - 1)
        if row.score is not None:
            begin = first + row.score.first
            scored.extend(range(begin, begin + len(row.score.targets)))
    return samples, scored
