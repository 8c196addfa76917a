"""RequestTable: the block ids of each admitted request, by slot, on the host."""

import numpy as np


class RequestTable:
    """Block tables as one array, so that a step's rows are picked with one index."""

    def __init__(self, max_requests: int, most_blocks: int) -> None:
        self.block_ids = np.zeros((max_requests, most_blocks), dtype=np.int64)
        """[slots, blocks]; 0, the null block, beyond a request's own"""
        self._num_blocks = [0] * max_requests

    def admit(self, slot: int, block_ids: list[int]) -> None:
        """A request enters the slot with these blocks."""
        self.block_ids[slot] = 0
        self._num_blocks[slot] = 0
        self.append(slot, block_ids)

    def append(self, slot: int, block_ids: list[int]) -> None:
        """Blocks that follow the ones the slot has."""
        first = self._num_blocks[slot]
        last = first + len(block_ids)
        self.block_ids[slot, first:last] = block_ids
        self._num_blocks[slot] = last
