"""Which requests share blocks. That shared blocks hold the right tokens is checked by the world at every step."""

import pytest

from unit.scheduling.scheduler_world import SchedulerWorld

PROMPT = [1, 2, 3, 4, 5, 6, 7]


def computed_tokens(world: SchedulerWorld) -> int:
    """Prompt and output tokens computed until all have ended."""
    total = 0
    while (plan := world.step()) is not None:
        total += plan.num_tokens
    return total


def test_second_request_finds_the_first_ones_full_blocks() -> None:
    world = SchedulerWorld()
    world.add(PROMPT)
    world.finish()
    second = world.add(PROMPT)
    assert world.step().num_tokens == 1
    assert second.num_cached_tokens == 6


def test_last_prompt_token_is_always_computed() -> None:
    """Its logits give the first new token."""
    world = SchedulerWorld()
    world.add([1, 2, 3, 4], max_generated=1)
    world.finish()
    second = world.add([1, 2, 3, 4], max_generated=1)
    assert world.step().num_tokens == 2
    assert second.num_cached_tokens == 2


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation() -> None:
    world = SchedulerWorld()
    first = world.add([1, 2, 3], max_generated=4)
    while world.watched:
        world.step(tokens=[9])
    follow_up = world.add([*first.prompt_tokens, 9, 9, 9, 9, 1, 2])
    world.step()
    assert follow_up.num_cached_tokens == 6


def test_hit_can_be_continued_by_the_next_one() -> None:
    world = SchedulerWorld()
    cached = []
    for length in (3, 5, 7, 9):
        request = world.add(list(range(length)), max_generated=1)
        world.finish()
        cached.append(request.num_cached_tokens)
    assert cached == [0, 2, 4, 6]


def test_thirty_two_requests_with_one_prefix_compute_it_once() -> None:
    world = SchedulerWorld(max_requests=32, max_tokens=256, num_blocks=200)
    prefix = list(range(100, 120))
    for number in range(32):
        world.add([*prefix, number], max_generated=1)
    assert computed_tokens(world) == len(prefix) + 32


def test_requests_wait_for_a_prefix_computed_in_chunks_only_as_far_as_they_share_it() -> None:
    world = SchedulerWorld(max_tokens=4)
    world.add(list(range(12)), max_generated=1)
    other = world.add([0, 1, 50, 51, 52], max_generated=1)
    first, second = world.steps(2)
    assert [row.request_id for row in first.rows] == [1]
    assert [row.request_id for row in second.rows] == [1]  # all four tokens of the step are the first one's
    world.finish()
    assert other.num_cached_tokens == 2


def test_waiting_for_a_prefix_ends_with_the_request_that_computes_it() -> None:
    world = SchedulerWorld(max_tokens=4)
    first = world.add(list(range(20)), max_generated=1)
    second = world.add(list(range(20)), max_generated=1)
    world.step()
    world.abort(first)
    world.step()
    assert second.num_cached_tokens == 4
    world.finish()


def test_other_salt_never_shares() -> None:
    world = SchedulerWorld()
    world.add(PROMPT, salt="alice")
    other = world.add(PROMPT, salt="bob")
    assert world.step().num_tokens == 2 * len(PROMPT)
    assert other.num_cached_tokens == 0


def test_each_salt_keeps_blocks_of_its_own() -> None:
    world = SchedulerWorld()
    for salt in ("", "alice", "bob", ""):
        world.add(PROMPT, salt=salt, max_generated=1)
        world.finish()
    assert world.scheduler.allocator.cache.num_unowned == 3 * 3


def test_continuations_of_one_prompt_share_it() -> None:
    world = SchedulerWorld()
    world.add(PROMPT, n=4, max_generated=1)
    assert computed_tokens(world) == len(PROMPT) + 3


def test_continuations_share_also_where_prefix_caching_is_off() -> None:
    world = SchedulerWorld(enable_prefix_caching=False)
    world.add(PROMPT, n=4, max_generated=1)
    assert computed_tokens(world) == len(PROMPT) + 3


def test_requests_do_not_share_where_prefix_caching_is_off() -> None:
    world = SchedulerWorld(enable_prefix_caching=False)
    for _ in range(3):
        world.add(PROMPT, max_generated=1)
    assert computed_tokens(world) == 3 * len(PROMPT)


def test_least_recently_used_prefix_makes_room() -> None:
    world = SchedulerWorld(num_blocks=7)
    for token in (1, 2, 1, 3):
        world.add([token] * 5, max_generated=1)
        world.finish()
    kept = [world.add([token] * 5, max_generated=1) for token in (1, 2)]
    world.finish()
    assert [request.num_cached_tokens for request in kept] == [4, 2]


def test_two_that_compute_the_same_side_by_side_keep_their_own_blocks() -> None:
    """Scored prompts do not wait for each other."""
    world = SchedulerWorld()
    for _ in range(2):
        world.add(PROMPT, scores_prompt=True)
    assert world.step().num_tokens == 2 * len(PROMPT)
    world.finish()
    assert world.scheduler.allocator.num_owned == 0


def test_blocks_of_a_faulty_row_are_not_found_later() -> None:
    world = SchedulerWorld()
    world.add(PROMPT)
    world.step(faulty=0)
    second = world.add(PROMPT)
    world.step()
    assert second.num_cached_tokens == 0


def test_blocks_that_a_faulty_request_had_computed_before_are_not_found_later() -> None:
    world = SchedulerWorld(max_tokens=4)
    world.add(PROMPT)
    world.step()
    world.step(faulty=0)
    second = world.add(PROMPT)
    world.step()
    assert second.num_cached_tokens == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_request_that_shares_with_a_faulty_one_goes_on_with_its_own_books(order: tuple[int, int]) -> None:
    """What it computes from then on stays private: its first blocks are not in the cache any more."""
    world = SchedulerWorld(num_blocks=30)
    pair = [world.add([1, 2, 3], max_generated=12), world.add([1, 2, 3], max_generated=12)]
    world.step()
    world.step(tokens=[9])
    world.step(faulty=pair[order[0]], tokens=[9])
    again = world.add([1, 2, 3], max_generated=2)
    world.step(tokens=[9])
    world.step(tokens=[9])
    assert world.ends[again.request_id] == 1
    world.add([1] * 40, max_generated=1)
    world.finish()
