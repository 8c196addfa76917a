"""StaticBlockAllocator: grants a row the blocks of its own contiguous region, as long as they are free."""

from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.prefix_cache import PrefixCache


class StaticBlockAllocator(DynamicBlockAllocator):
    """Slot s has the region of `blocks_per_row` blocks that begins at block 1 + s * blocks_per_row.

    Blocks that beams share may lie in another row's region. There are enough for all: rows own at most a region's
    worth of blocks each.
    """

    def __init__(self, num_blocks: int, blocks_per_row: int) -> None:
        super().__init__(num_blocks, PrefixCache())
        self._blocks_per_row = blocks_per_row

    def prefer_region(self, slot: int) -> None:
        """The next grants come from this slot's region, in order, before any other."""
        first = 1 + slot * self._blocks_per_row
        region = range(first, first + self._blocks_per_row)
        elsewhere = [block_id for block_id in self._free if block_id not in region]
        inside = [block_id for block_id in self._free if block_id in region]
        self._free = elsewhere + sorted(inside, reverse=True)
