"""What the allocator promises, case by case; any order of actions is test_block_allocator_machine's."""

from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.prefix_cache import PrefixCache, chain_root, chain_value


def allocator_of(num_blocks: int) -> DynamicBlockAllocator:
    return DynamicBlockAllocator(num_blocks, PrefixCache())


def register(allocator: DynamicBlockAllocator, block_ids: list[int], salt: str = "") -> None:
    """Registers blocks as a chain, each holding its own number twice."""
    parent = chain_root(salt)
    for block_id in block_ids:
        chain = chain_value(parent, [block_id, block_id])
        assert allocator.cache.insert(block_id, chain, parent, [block_id, block_id])
        parent = chain


def test_null_block_is_never_granted() -> None:
    assert sorted(allocator_of(5).allocate(4) or []) == [1, 2, 3, 4]


def test_too_few_blocks_change_nothing() -> None:
    allocator = allocator_of(4)
    assert allocator.allocate(4) is None
    assert (allocator.num_free, allocator.num_owned) == (3, 0)


def test_zero_blocks_can_always_be_granted() -> None:
    allocator = allocator_of(2)
    allocator.allocate(1)
    assert allocator.allocate(0) == []


def test_block_is_free_after_its_last_owner_left() -> None:
    allocator = allocator_of(3)
    granted = allocator.allocate(1) or []
    allocator.share(granted)
    allocator.free(granted)
    assert allocator.num_free == 1
    allocator.free(granted)
    assert allocator.num_free == 2


def test_cached_block_without_owner_is_available_but_not_free() -> None:
    allocator = allocator_of(3)
    granted = allocator.allocate(2) or []
    register(allocator, granted)
    allocator.free(granted)
    assert (allocator.num_free, allocator.num_available, allocator.num_owned) == (0, 2, 0)


def test_free_blocks_go_before_cached_ones() -> None:
    allocator = allocator_of(4)
    cached = allocator.allocate(1) or []
    register(allocator, cached)
    allocator.free(cached)
    assert not set(allocator.allocate(2) or []) & set(cached)
    assert allocator.allocate(1) == cached


def test_long_prefix_is_evicted_from_its_end() -> None:
    allocator = allocator_of(5)
    chain = allocator.allocate(4) or []
    register(allocator, chain)
    allocator.free(chain)
    assert [allocator.allocate(1) for _ in chain] == [[block_id] for block_id in reversed(chain)]


def test_prefix_used_again_outlives_one_that_was_not() -> None:
    allocator = allocator_of(3)
    first, second = allocator.allocate(1) or [], allocator.allocate(1) or []
    register(allocator, first, "a")
    register(allocator, second, "b")
    allocator.free(first)
    allocator.free(second)
    allocator.share(first)
    allocator.free(first)
    assert allocator.allocate(2) == second + first


def test_owned_cached_blocks_are_not_evicted() -> None:
    allocator = allocator_of(4)
    owned = allocator.allocate(2) or []
    register(allocator, owned)
    assert allocator.allocate(2) is None
    assert len(allocator.allocate(1) or []) == 1


def test_discarded_block_cannot_be_found_nor_what_continues_it() -> None:
    allocator = allocator_of(4)
    chain = allocator.allocate(3) or []
    register(allocator, chain)
    allocator.free(chain)
    allocator.share(chain[:1])
    allocator.discard(chain[:1])
    assert not any(block_id in allocator.cache for block_id in chain)
    assert (allocator.num_free, allocator.check_ledger([])) == (3, [])


def test_discarded_block_stays_with_its_other_owners() -> None:
    allocator = allocator_of(3)
    shared = allocator.allocate(2) or []
    register(allocator, shared)
    allocator.share(shared)
    allocator.discard(shared)
    assert allocator.num_owned == 2
    assert allocator.check_ledger([shared]) == []
    allocator.free(shared)
    assert allocator.num_free == 2


def test_ledger_names_a_block_whose_owners_are_miscounted() -> None:
    allocator = allocator_of(3)
    (block_id,) = allocator.allocate(1) or []
    assert allocator.check_ledger([]) == [
        f"block {block_id}: 1 owners on the books, 0 in fact",
        "1 free + 0 cached + 0 owned != 2",
    ]


def test_ledger_names_a_block_that_is_free_and_owned() -> None:
    allocator = allocator_of(3)
    granted = allocator.allocate(1) or []
    allocator.free(granted)
    assert f"block {granted[0]} is free and owned or cached" in allocator.check_ledger([granted])
