"""The worlds of this folder must be able to fail: each fault that is put in on purpose is found by playing a while.

Without a fault the same plays pass; that is the control.
"""

from collections.abc import Callable, Sequence

import pytest

from kilotron.scheduling import prefix_cache, scheduled_request
from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.prefix_cache import PrefixCache
from kilotron.scheduling.waiting_queue import WaitingQueue
from unit.scheduling import allocator_world
from unit.scheduling.allocator_world import AllocatorWorld
from unit.scheduling.random_play import play_with_allocator, play_with_scheduler, random_limits
from unit.scheduling.scheduler_world import SchedulerWorld

NUM_PLAYS = 60
WHAT_A_FAULT_RAISES = (AssertionError, RuntimeError, LookupError)


class DropsDecrement(DynamicBlockAllocator):
    """Forgets to count the last block's owner down."""

    def free(self, block_ids: Sequence[int]) -> None:
        super().free(block_ids[:-1])


class FreesTwice(DynamicBlockAllocator):
    """Gives a shared block back with its first owner."""

    def share(self, block_ids: Sequence[int]) -> None:
        super().share(block_ids)
        for block_id in block_ids:
            self._num_owners[block_id] = 1


class LeavesFaultyBlocks(DynamicBlockAllocator):
    """Lets what a faulty row computed be found again."""

    def discard(self, block_ids: Sequence[int]) -> None:
        self.free(block_ids)


class KeepsStaleHash(PrefixCache):
    """Still finds a block that it has given up."""

    def evict(self) -> int | None:
        known = dict(self._by_chain)
        block_id = super().evict()
        self._by_chain = known
        return block_id


class EvictsMostRecent(PrefixCache):
    """MRU for LRU, still leaves first."""

    def evict(self) -> int | None:
        leaves = [entry for entry in self._by_block.values() if self._is_leaf(entry)]
        if not leaves:
            return None
        newest = max(leaves, key=lambda entry: entry.last_used)
        self._drop(newest)
        return newest.block_id


class EvictsRootsToo(PrefixCache):
    """Least recently used, but not leaves first."""

    def _is_leaf(self, entry: prefix_cache._Entry) -> bool:
        return not entry.is_owned


class ForgetsOnlyTheBlock(PrefixCache):
    """Leaves findable what was computed from a faulty row's blocks."""

    def forget(self, block_ids: Sequence[int]) -> list[int]:
        for block_id in block_ids:
            if block_id in self:
                self._drop(self._by_block[block_id])
        return []


class NumbersAllAlike(PrefixCache):
    """Does not tell a block registered anew from what it was before."""

    def registration(self, block_id: int) -> int | None:
        return 1


class BelievesHashes(PrefixCache):
    """Does not compare tokens on a hit."""

    def find(self, chain: bytes, parent: bytes, tokens: Sequence[int]) -> int | None:
        entry = self._by_chain.get(chain)
        return None if entry is None else entry.block_id


def play_both(allocator_type: type[DynamicBlockAllocator], cache_type: type[PrefixCache]) -> None:
    play_allocator(allocator_type, cache_type)
    play_scheduler(lambda num_blocks: allocator_type(num_blocks, cache_type()))


def play_allocator(
    allocator_type: type[DynamicBlockAllocator] = DynamicBlockAllocator, cache_type: type[PrefixCache] = PrefixCache
) -> None:
    for seed in range(NUM_PLAYS):
        play_with_allocator(AllocatorWorld(allocator_type(4 + seed % 9, cache_type())), seed)


def play_scheduler(build_allocator: Callable[[int], DynamicBlockAllocator] | None = None) -> None:
    for seed in range(NUM_PLAYS):
        limits = random_limits(seed)
        allocator = build_allocator(limits["num_blocks"]) if build_allocator else None
        play_with_scheduler(SchedulerWorld(seed=seed, allocator=allocator, **limits), seed)


def collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash so weak that blocks with the same first token look alike, whatever else they hold."""

    def weak_value(parent: bytes, tokens: Sequence[int]) -> bytes:
        return b"%d" % tokens[0]

    monkeypatch.setattr(scheduled_request, "chain_value", weak_value)


def test_worlds_pass_without_a_fault() -> None:
    play_both(DynamicBlockAllocator, PrefixCache)


@pytest.mark.parametrize("allocator_type", [DropsDecrement, FreesTwice, LeavesFaultyBlocks])
def test_fault_of_the_allocator_is_found(allocator_type: type[DynamicBlockAllocator]) -> None:
    with pytest.raises(WHAT_A_FAULT_RAISES):
        play_allocator(allocator_type)


@pytest.mark.parametrize("cache_type", [KeepsStaleHash, EvictsMostRecent, EvictsRootsToo, ForgetsOnlyTheBlock])
def test_fault_of_the_prefix_cache_is_found(cache_type: type[PrefixCache]) -> None:
    with pytest.raises(WHAT_A_FAULT_RAISES):
        play_allocator(cache_type=cache_type)


@pytest.mark.parametrize("allocator_type", [DropsDecrement, FreesTwice])
def test_fault_of_the_allocator_is_found_under_a_scheduler(allocator_type: type[DynamicBlockAllocator]) -> None:
    with pytest.raises(WHAT_A_FAULT_RAISES):
        play_scheduler(lambda num_blocks: allocator_type(num_blocks, PrefixCache()))


@pytest.mark.parametrize("cache_type", [KeepsStaleHash, NumbersAllAlike])
def test_stale_entry_is_found_under_a_scheduler(cache_type: type[PrefixCache]) -> None:
    with pytest.raises(WHAT_A_FAULT_RAISES):
        play_scheduler(lambda num_blocks: DynamicBlockAllocator(num_blocks, cache_type()))


def test_mru_for_lru_is_found_by_the_order_of_eviction_alone() -> None:
    """The books balance and every hit is right: only the model's own order tells."""
    play_scheduler(lambda num_blocks: DynamicBlockAllocator(num_blocks, EvictsMostRecent()))
    with pytest.raises(AssertionError, match=r"evicted .*, should be"):
        play_allocator(cache_type=EvictsMostRecent)


def test_skipped_salt_is_found_by_the_content_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled_request, "chain_root", lambda salt: prefix_cache.chain_root(""))
    with pytest.raises(AssertionError, match="would read"):
        play_scheduler()


def test_skipped_salt_is_found_by_the_allocators_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator_world, "chain_root", lambda salt: prefix_cache.chain_root(""))
    with pytest.raises(AssertionError, match="found block"):
        play_both(DynamicBlockAllocator, PrefixCache)


def test_colliding_hashes_do_no_harm_because_tokens_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    collide(monkeypatch)
    play_scheduler()


def test_skipped_comparison_of_tokens_is_found_when_hashes_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    collide(monkeypatch)
    with pytest.raises(AssertionError, match="would read"):
        play_scheduler(lambda num_blocks: DynamicBlockAllocator(num_blocks, BelievesHashes()))


def test_queue_that_ignores_age_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaitingQueue, "in_order", lambda queue, step: iter(list(_unaged(queue))))
    with pytest.raises(AssertionError, match="left behind"):
        play_scheduler()


def _unaged(queue: WaitingQueue) -> list[scheduled_request.ScheduledRequest]:
    return [item for priority in sorted(queue._by_priority) for item in queue._by_priority[priority].values()]
