"""CrossTable: the blocks of each admitted request's encoder output, and the tensors of a step's encoder work."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from kilotron.contexts.request_table import RequestTable
from kilotron.kernels.interface import AttentionRows, KernelBackend
from kilotron.models.inference_batch import EncoderBatch
from kilotron.scheduling.step_plan import Admission, RowPlan


class CrossTable:
    """Encoder outputs by slot, on the host.

    Args:
        max_requests: number of slots.
        max_encoder_length: most tokens of one encoder input.
        block_size: tokens of a block.
        kernels: the backend that plans attention.
    """

    def __init__(self, max_requests: int, max_encoder_length: int, block_size: int, kernels: KernelBackend) -> None:
        self._table = RequestTable(max_requests, -(-max_encoder_length // block_size))
        self._lengths = np.zeros(max_requests, dtype=np.int64)
        self._block_size = block_size
        self._kernels = kernels

    def admit(self, admission: Admission) -> None:
        """A request enters a slot."""
        self._table.admit(admission.slot, list(admission.cross_block_ids))
        self._lengths[admission.slot] = admission.encoder_length

    def written_blocks(self, rows: Sequence[RowPlan]) -> list[int]:
        """Blocks that a step writes encoder output to."""
        block_size = self._block_size
        return [
            int(block_id)
            for row in rows
            if row.encoder is not None
            for block_id in self._table.block_ids[
                row.slot, row.encoder.num_cached // block_size : -(-len(row.encoder.token_ids) // block_size)
            ]
        ]

    def lay_out(
        self, rows: Sequence[RowPlan], slot_of_token: np.ndarray, send: Callable[[np.ndarray], Tensor]
    ) -> EncoderBatch:
        """The encoder inputs that are new, and what each token of the step (in `slot_of_token`) may look at."""
        inputs = [(row.slot, row.encoder) for row in rows if row.encoder is not None]
        token_ids = [token_id for _, one in inputs for token_id in one.token_ids]
        lengths = np.array([len(one.token_ids) for _, one in inputs], dtype=np.int64)
        slots = np.repeat(np.array([slot for slot, _ in inputs], dtype=np.int64), lengths)
        positions = np.arange(len(token_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_new = positions >= np.repeat(np.array([one.num_cached for _, one in inputs], dtype=np.int64), lengths)
        written = np.nonzero(is_new)[0]
        blocks = self._table.block_ids[slots, positions // self._block_size]
        kv_slots = blocks * self._block_size + positions % self._block_size
        seen = self._lengths[slot_of_token]
        most_blocks = -(-int(seen.max()) // self._block_size)
        # Causal attention of a row whose one token comes last sees all of the row.
        attention_rows = AttentionRows(seen - 1, np.ones_like(seen), self._table.block_ids[slot_of_token, :most_blocks])
        return EncoderBatch(
            token_ids=send(np.array(token_ids, dtype=np.int64)),
            positions=send(positions),
            lengths=lengths,
            written=send(written),
            kv_slots=send(kv_slots[written]),
            cross_attention=self._kernels.plan_attention(attention_rows, self._block_size),
        )
