"""Which replica gets a request."""

import msgspec
import pytest

from kilotron.coordinator.core.routing import Policy, Router
from kilotron.coordinator.submissions import block_hashes
from kilotron.coordinator.wire import AllBlocksCleared, BlockRemoved, BlockStored
from unit.coordinator.core.core_world import FACTS

PROMPT = list(range(16))
HASHES = block_hashes(PROMPT, "", FACTS.block_size)


def router_of(policy: Policy = "longest_prefix", alpha: float = 0.5, names: str = "ab", **facts: int) -> Router:
    router = Router(policy, alpha)
    for name in names:
        router.add(name, msgspec.structs.replace(FACTS, **facts))
    return router


def stored(hashes: list[bytes]) -> BlockStored:
    return BlockStored(hashes, None, [], FACTS.block_size)


def test_equal_replicas_take_turns() -> None:
    for policy in ("longest_prefix", "least_load", "round_robin"):
        router = router_of(policy, names="abc")
        chosen = []
        for _ in range(6):
            replica = router.choose(1, 4, [])
            assert replica is not None
            router.take(replica, 1, 10)
            chosen.append(replica)
        assert chosen == list("abcabc")


def test_least_load_counts_tokens_not_requests() -> None:
    router = router_of("least_load")
    router.take("a", 1, 100)
    router.take("b", 1, 10)
    router.take("b", 1, 10)
    assert router.choose(1, 4, []) == "b"


def test_tokens_that_are_done_are_no_load() -> None:
    router = router_of("least_load")
    router.take("a", 1, 100)
    router.take("b", 1, 50)
    router.progress("a", 90)
    assert router.choose(1, 4, []) == "a"


def test_the_longest_cached_prefix_wins() -> None:
    router = router_of()
    router.take_block_events("b", [stored(HASHES[:2])])
    router.take_block_events("a", [stored(HASHES[:1])])
    assert router.choose(1, len(PROMPT), HASHES) == "b"


def test_only_the_leading_run_counts() -> None:
    router = router_of()
    router.take_block_events("a", [stored([HASHES[0], HASHES[2], HASHES[3]])])
    assert router.num_matched_blocks("a", HASHES) == 1


def test_alpha_weighs_the_prefix_against_the_load() -> None:
    for alpha, expected in ((1.0, "a"), (0.0, "b")):
        router = router_of(alpha=alpha)
        router.take_block_events("a", [stored(HASHES)])
        router.take("a", 2, 100)
        assert router.choose(1, len(PROMPT), HASHES) == expected


def test_removed_and_cleared_blocks_are_not_matched() -> None:
    router = router_of()
    router.take_block_events("a", [stored(HASHES), BlockRemoved([HASHES[2], b"unknown"])])
    assert router.num_matched_blocks("a", HASHES) == 2
    router.take_block_events("a", [AllBlocksCleared()])
    assert router.num_matched_blocks("a", HASHES) == 0


def test_a_replica_never_has_more_entries_than_blocks() -> None:
    router = router_of(num_blocks=3)
    router.take_block_events("a", [stored([bytes([value])]) for value in range(100)])
    share = router.share_of("a")
    assert share is not None
    assert list(share.blocks) == [b"a", b"b", b"c"]


def test_a_replica_that_comes_back_has_cached_nothing() -> None:
    router = router_of()
    router.take_block_events("a", [stored(HASHES)])
    router.remove("a")
    router.add("a", FACTS)
    assert router.num_matched_blocks("a", HASHES) == 0


def test_credits_are_twice_the_batch_and_never_exceeded() -> None:
    router = router_of(names="a")
    for _ in range(2 * FACTS.max_requests):
        assert router.choose(1, 4, []) == "a"
        router.take("a", 1, 1)
    assert router.choose(1, 4, []) is None
    assert not router.has_room(1)
    router.give_back("a", 1, 1)
    assert router.choose(1, 4, []) == "a"


def test_a_request_larger_than_all_credits_goes_to_an_empty_replica() -> None:
    router = router_of(names="a")
    router.take("a", 1, 1)
    assert router.choose(100, 4, []) is None
    router.give_back("a", 1, 1)
    assert router.choose(100, 4, []) == "a"
    router.take("a", 100, 1)
    router.give_back("a", 100, 1)
    assert router.choose(100, 4, []) == "a"


@pytest.mark.parametrize("policy", ["longest_prefix", "least_load", "round_robin"])
def test_closed_and_excluded_replicas_get_nothing(policy: Policy) -> None:
    router = router_of(policy, names="abc")
    router.set_open("a", is_open=False)
    assert router.choose(1, 4, [], without={"b"}) == "c"
    router.set_open("c", is_open=False)
    assert router.choose(1, 4, [], without={"b"}) is None
