"""DynamicInferenceContext: owns the paged KV cache and turns a StepPlan into the tensors of one step.

It takes the plan as it is: which rows run and in which blocks was decided by the scheduler, on whatever rank.
"""

import numpy as np
import torch
from torch import Tensor

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
    """

    def __init__(self, shape: KVShape, kernels: KernelBackend, *, max_requests: int, max_sequence_length: int) -> None:
        self.shape = shape
        self.storage = KVStorage(shape, kernels)
        self._kernels = kernels
        self._table = RequestTable(max_requests, -(-max_sequence_length // shape.block_size))

    def prepare_batch(self, plan: StepPlan) -> InferenceBatch:
        """Takes in the plan's admissions and grants, and lays its rows out as tensors."""
        for admission in plan.admissions:
            self._table.admit(admission.slot, admission.cached_block_ids)
        granted: list[int] = []
        for row in plan.rows:
            if row.block_ids:
                self._table.append(row.slot, row.block_ids)
                granted += row.block_ids
        self.storage.clear(granted)
        return self._lay_out(plan.rows)

    def close(self) -> None:
        """Gives the cache's memory back. Idempotent."""
        self.storage.close()

    def _lay_out(self, rows: list[RowPlan]) -> InferenceBatch:
        block_size = self.shape.block_size
        slots = np.array([row.slot for row in rows], dtype=np.int64)
        starts = np.array([row.start for row in rows], dtype=np.int64)
        lengths = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
        ends = np.cumsum(lengths)
        firsts = ends - lengths
        positions = np.arange(ends[-1]) + np.repeat(starts - firsts, lengths)
        block_ids = self._table.block_ids[np.repeat(slots, lengths), positions // block_size]
        most_blocks = int((starts + lengths).max() + block_size - 1) // block_size
        attention_rows = AttentionRows(starts, lengths, self._table.block_ids[slots, :most_blocks])
        token_ids = [token_id for row in rows for token_id in row.token_ids]
        samples = [end - 1 for row, end in zip(rows, ends.tolist(), strict=True) if row.samples]
        return InferenceBatch(
            token_ids=self._tensor(np.array(token_ids, dtype=np.int64)),
            positions=self._tensor(positions),
            kv_slots=self._tensor(block_ids * block_size + positions % block_size),
            kv_layers=self.storage.layers,
            attention=self._kernels.plan_attention(attention_rows, block_size),
            logits_index=self._tensor(np.array(samples + _scored_tokens(rows, firsts), dtype=np.int64)),
            num_samples=len(samples),
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._kernels.device)


def _scored_tokens(rows: list[RowPlan], firsts: np.ndarray) -> list[int]:
    """Indices of the prompt tokens whose logits score the next one, in order of rows."""
    scored: list[int] = []
    for row, first in zip(rows, firsts.tolist(), strict=True):
        if row.score is not None:
            begin = first + row.score.first
            scored.extend(range(begin, begin + len(row.score.targets)))
    return scored
