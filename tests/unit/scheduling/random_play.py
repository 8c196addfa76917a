"""Random users for the worlds: the same seed gives the same play."""

import random

from kilotron.errors import QueueFullError, RequestNeverFitsError
from unit.scheduling.allocator_world import AllocatorWorld
from unit.scheduling.scheduler_world import SchedulerWorld

_WEIGHTS = {"add": 6, "step": 12, "abort": 1, "wait": 1, "fail_step": 0.2}
_WEIGHTS |= {"suspend": 0.1, "preempt_all": 0.1, "clear_cache": 0.1}
PREFIXES = ([], [0, 0, 1], [0, 0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1])


def play_with_allocator(world: AllocatorWorld, seed: int, num_actions: int = 60) -> None:
    """Prompts over two tokens come, grow, fork, finish and fail."""
    rng = random.Random(seed)
    for _ in range(num_actions):
        action = rng.choice(["start", "start", "extend", "fork", "finish", "finish", "discard", "clear"])
        tokens = [rng.randrange(2) for _ in range(rng.randint(1, 9))]
        if action == "start" or not world.sequences:
            world.start(rng.choice(["", "other"]), tokens)
        elif action == "clear":
            if rng.random() < 0.2:
                world.clear_cache()
        elif action == "extend":
            world.extend(rng.choice(world.sequences), tokens)
        else:
            getattr(world, action)(rng.choice(world.sequences))
        world.check()
    world.tear_down()


def random_limits(seed: int) -> dict[str, int]:
    """Small in every way, so that every limit is met."""
    rng = random.Random(seed)
    return {
        "num_blocks": rng.randint(5, 24),
        "block_size": rng.choice([1, 2, 2, 4]),
        "max_requests": rng.randint(1, 6),
        "max_tokens": rng.randint(1, 16),
        "max_logits_tokens": rng.randint(1, 10),
        "max_waiting_requests": rng.randint(1, 12),
        "aging_steps": rng.randint(1, 4),
        "enable_prefix_caching": rng.random() < 0.7,
        "enable_chunked_prefill": rng.random() < 0.7,
    }


def play_with_scheduler(world: SchedulerWorld, seed: int, num_actions: int = 60) -> None:
    """Requests come faster than they can be served; some fail, are aborted or run out of time."""
    rng = random.Random(seed)
    for _ in range(num_actions):
        action = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
        if action == "add":
            _add(world, rng)
        elif action == "step":
            world.step(faulty=rng.choice([None] * 9 + [rng.randrange(6)]), ending=rng.choice([None, rng.randrange(6)]))
        elif action == "wait":
            world.wait(rng.randint(1, 3))
        elif action in ("fail_step", "suspend", "preempt_all", "clear_cache"):
            getattr(world, action)()
        elif world.watched:
            world.abort(rng.choice(list(world.watched.values())).request)
    world.finish()


def _add(world: SchedulerWorld, rng: random.Random) -> None:
    max_generated = rng.choice([0, 1, 3, 8, 16])
    try:
        world.add(
            [*rng.choice(PREFIXES), *(rng.randrange(2) for _ in range(rng.randint(1, 6)))],
            max_generated=max_generated,
            priority=rng.choice([0, 0, 0, -1, 1]),
            salt=rng.choice(["", "", "other"]),
            n=rng.choice([1, 1, 1, 3]),
            scores_prompt=max_generated == 0 or rng.random() < 0.2,
            encoder=rng.choice([[], [], *PREFIXES]),
            deadline=rng.choice([None] * 5 + [world.now + rng.randint(1, 9)]),
        )
    except QueueFullError:
        assert len(world.scheduler.waiting) >= world.limits.max_waiting_requests
    except RequestNeverFitsError:
        pass  # the world has checked that this is true
