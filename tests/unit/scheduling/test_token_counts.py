"""What the scheduler counts of prompt tokens, computed and cached."""

from unit.scheduling.scheduler_world import SchedulerWorld


def test_every_prompt_token_counts_once_as_computed_or_as_cached() -> None:
    world = SchedulerWorld(block_size=2, max_tokens=3)
    world.add([0, 1, 0, 1, 0])
    world.finish()
    counts = world.scheduler.counts
    assert (counts.prompt_computed, counts.prompt_cached, counts.queried, counts.hit) == (5, 0, 5, 0)
    world.add([0, 1, 0, 1, 1])
    world.finish()
    assert (counts.prompt_computed, counts.prompt_cached, counts.queried, counts.hit) == (6, 4, 10, 4)


def test_what_is_computed_again_does_not_count_again() -> None:
    world = SchedulerWorld(block_size=2, max_tokens=3)
    world.add([0, 1, 0, 1, 0], max_generated=3)
    world.step()
    world.suspend()
    world.finish()
    assert (world.scheduler.counts.prompt_computed, world.scheduler.num_preemptions) == (5, 1)


def test_requests_that_may_not_read_the_cache_do_not_ask_it() -> None:
    world = SchedulerWorld(block_size=2)
    for _ in range(2):
        world.add([0, 1, 0, 1, 0], scores_prompt=True)
        world.finish()
    counts = world.scheduler.counts
    assert (counts.prompt_computed, counts.queried, counts.hit) == (10, 0, 0)
