"""What a block is found by, and in which order blocks are given up."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.scheduling.cache_events import BlockRemoved, BlockStored, CacheCleared, CacheEvent
from kilotron.scheduling.prefix_cache import PrefixCache, chain_root, chain_value

ROOT = chain_root("")


def insert(cache: PrefixCache, block_id: int, tokens: list[int], parent: bytes = ROOT) -> bytes:
    chain = chain_value(parent, tokens)
    assert cache.insert(block_id, chain, parent, tokens)
    return chain


def test_block_is_found_by_tokens_and_parent() -> None:
    cache = PrefixCache()
    first = insert(cache, 1, [5, 6])
    second = insert(cache, 2, [7, 8], first)
    assert cache.find(first, ROOT, [5, 6]) == 1
    assert cache.find(second, first, [7, 8]) == 2
    assert cache.find(chain_value(ROOT, [7, 8]), ROOT, [7, 8]) is None


def test_hash_alone_is_not_believed() -> None:
    cache = PrefixCache()
    chain = insert(cache, 1, [5, 6])
    assert cache.find(chain, ROOT, [5, 7]) is None
    assert cache.find(chain, chain_root("other"), [5, 6]) is None


def test_same_content_is_registered_once() -> None:
    cache = PrefixCache()
    chain = insert(cache, 1, [5, 6])
    assert not cache.insert(2, chain, ROOT, [5, 6])
    assert (1 in cache, 2 in cache) == (True, False)


def test_eviction_makes_room_for_the_same_content_elsewhere() -> None:
    cache = PrefixCache()
    insert(cache, 1, [5, 6])
    cache.mark_unowned([1])
    assert cache.evict() == 1
    assert cache.find(insert(cache, 2, [5, 6]), ROOT, [5, 6]) == 2


def test_registration_changes_with_what_the_block_holds() -> None:
    cache = PrefixCache()
    assert cache.registration(1) is None
    insert(cache, 1, [5, 6])
    before = cache.registration(1)
    cache.mark_unowned([1])
    assert cache.registration(1) == before
    cache.evict()
    insert(cache, 1, [5, 6])
    assert cache.registration(1) not in {None, before}


def test_nothing_is_evicted_while_all_is_owned() -> None:
    cache = PrefixCache()
    insert(cache, 1, [5, 6])
    assert cache.evict() is None


def test_leaves_go_first_and_among_them_the_one_unused_longest() -> None:
    cache = PrefixCache()
    trunk = insert(cache, 1, [0, 0])
    insert(cache, 2, [1, 1], trunk)
    insert(cache, 3, [2, 2], trunk)
    cache.mark_unowned([1, 3])
    cache.mark_owned(1)
    cache.mark_unowned([1, 2])
    assert [cache.evict() for _ in range(4)] == [3, 2, 1, None]


def test_forgotten_block_takes_its_descendants_along() -> None:
    cache = PrefixCache()
    trunk = insert(cache, 1, [0, 0])
    branch = insert(cache, 2, [1, 1], trunk)
    insert(cache, 3, [2, 2], branch)
    insert(cache, 4, [3, 3])
    cache.mark_unowned([2, 3])
    assert cache.forget([1]) == [2, 3]
    assert [block_id for block_id in range(6) if block_id in cache] == [4]
    assert cache.num_unowned == 0


def test_blocks_used_over_and_over_do_not_pile_up_in_the_books() -> None:
    cache = PrefixCache()
    insert(cache, 1, [0, 0])
    cache.mark_unowned([1])
    for _ in range(10_000):
        cache.mark_owned(1)
        cache.mark_unowned([1])
    assert len(cache._leaves) < 100


def test_chain_value_is_sha256_of_parent_and_tokens() -> None:
    packed = b"".join(token.to_bytes(8, "little") for token in (1, 2**40))
    assert chain_value(ROOT, [1, 2**40]) == hashlib.sha256(ROOT + packed).digest()


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters()), st.text(st.characters()))
def test_any_two_texts_are_different_salts(one: str, other: str) -> None:
    assert (chain_root(one) == chain_root(other)) == (one == other)


def test_salt_may_be_any_text_that_json_can_carry() -> None:
    assert chain_root("\ud800") != chain_root("\ud801")


def test_events_tell_what_is_stored_removed_and_cleared() -> None:
    cache, heard = PrefixCache(), list[CacheEvent]()
    cache.on_event = heard.append
    first = insert(cache, 1, [5, 6])
    second = insert(cache, 2, [7, 8], first)
    cache.mark_unowned([1, 2])
    assert heard == [BlockStored(first, ROOT, (5, 6)), BlockStored(second, first, (7, 8))] == cache.list_stored()
    heard.clear()
    cache.evict()
    cache.forget([1])
    cache.clear()
    assert heard == [BlockRemoved(second), BlockRemoved(first), CacheCleared()]


def test_same_content_again_is_no_event() -> None:
    cache, heard = PrefixCache(), list[CacheEvent]()
    chain = insert(cache, 1, [5, 6])
    cache.on_event = heard.append
    cache.insert(2, chain, ROOT, [5, 6])
    assert heard == []


def test_clearing_returns_what_nobody_owns() -> None:
    cache = PrefixCache()
    chain = insert(cache, 1, [5, 6])
    insert(cache, 2, [7, 8], chain)
    cache.mark_unowned([2])
    assert cache.clear() == [2]
    assert (cache.num_unowned, 1 in cache, cache.evict()) == (0, False, None)
