"""Grants KV blocks and takes them back; counts owners. Works on integers and knows nothing of tensors.

The ledger always balances: free + cached (unowned) + owned = all blocks but the null block.
"""

from collections.abc import Sequence

from kilotron.scheduling.prefix_cache import PrefixCache


class DynamicBlockAllocator:
    """Blocks 1 to `num_blocks - 1`; block 0 is the null block, which pads tables and is never granted."""

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self.num_blocks = num_blocks
        self.cache = cache
        self._free = list(range(num_blocks - 1, 0, -1))
        self._num_owners = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can grant: free ones and unowned cached ones."""
        return len(self._free) + self.cache.num_unowned

    @property
    def num_owned(self) -> int:
        """Blocks with at least one owner."""
        return self.num_blocks - 1 - self.num_available

    def num_unowned_among(self, block_ids: Sequence[int]) -> int:
        """How many of these cached blocks have no owner, and so would be available no more once shared."""
        return sum(self._num_owners[block_id] == 0 for block_id in block_ids)

    def allocate(self, count: int) -> list[int] | None:
        """Grants blocks to one owner, evicting cached ones if need be; None, and no change, if there are too few."""
        if count > self.num_available:
            return None
        granted = []
        for _ in range(count):
            block_id = self._free.pop() if self._free else self._evict()
            self._num_owners[block_id] = 1
            granted.append(block_id)
        return granted

    def share(self, block_ids: Sequence[int]) -> None:
        """Adds an owner to cached or owned blocks."""
        for block_id in block_ids:
            if self._num_owners[block_id] == 0:
                self.cache.mark_owned(block_id)
            self._num_owners[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Takes one owner from each block; without owners a cached block stays findable, any other becomes free."""
        unowned_cached = []
        for block_id in block_ids:
            self._num_owners[block_id] -= 1
            if self._num_owners[block_id] > 0:
                continue
            if block_id in self.cache:
                unowned_cached.append(block_id)
            else:
                self._free.append(block_id)
        if unowned_cached:
            self.cache.mark_unowned(unowned_cached)

    def discard(self, block_ids: Sequence[int]) -> None:
        """Like `free`, but what these blocks hold, and what was computed from it, must not be found again."""
        self._free += self.cache.forget(block_ids)
        self.free(block_ids)

    def clear_cache(self) -> None:
        """Nothing that is cached can be found any more; blocks without owners become free."""
        self._free += self.cache.clear()

    def used_block_ids(self) -> list[int]:
        """The blocks that hold something: owned or cached."""
        free = set(self._free)
        return [block_id for block_id in range(1, self.num_blocks) if block_id not in free]

    def check_ledger(self, owners: Sequence[Sequence[int]]) -> list[str]:
        """What is wrong with the books, given each owner's block ids; empty when they balance."""
        counted = [0] * self.num_blocks
        for block_ids in owners:
            for block_id in block_ids:
                counted[block_id] += 1
        problems = [
            f"block {i}: {self._num_owners[i]} owners on the books, {counted[i]} in fact"
            for i in range(self.num_blocks)
            if self._num_owners[i] != counted[i]
        ]
        free = set(self._free)
        if len(free) != len(self._free):
            problems.append("a block is free twice")
        problems += [f"block {i} is free and owned or cached" for i in free if counted[i] or i in self.cache]
        num_owned = sum(1 for count in counted if count)
        if len(free) + self.cache.num_unowned + num_owned != self.num_blocks - 1:
            problems.append(
                f"{len(free)} free + {self.cache.num_unowned} cached + {num_owned} owned != {self.num_blocks - 1}"
            )
        return problems

    def _evict(self) -> int:
        block_id = self.cache.evict()
        if block_id is None:
            raise RuntimeError("the prefix cache counts unowned blocks that it cannot evict")
        return block_id
