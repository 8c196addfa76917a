"""The scheduler in any order of arrivals, steps, faults, aborts and deadlines; what must hold is in SchedulerWorld."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kilotron.errors import QueueFullError, RequestNeverFitsError
from unit.scheduling.random_play import PREFIXES, play_with_scheduler, random_limits
from unit.scheduling.scheduler_world import SchedulerWorld
from unit.scheduling.state_machine import explore

limits = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 2, 4]),
        "max_requests": st.integers(1, 6),
        "max_tokens": st.integers(1, 16),
        "max_logits_tokens": st.integers(1, 10),
        "max_waiting_requests": st.integers(1, 12),
        "aging_steps": st.integers(1, 4),
        "enable_prefix_caching": st.booleans(),
        "enable_chunked_prefill": st.booleans(),
    }
)
prompts = st.builds(
    lambda prefix, rest: [*prefix, *rest],
    st.sampled_from(PREFIXES),
    st.lists(st.integers(0, 1), min_size=1, max_size=6),
)
inputs = st.one_of(st.just([]), prompts)
maybe_row = st.none() | st.integers(0, 5)


class SchedulerMachine(RuleBasedStateMachine):
    """Few blocks, so that requests are preempted; two tokens, so that histories coincide."""

    @initialize(num_blocks=st.integers(4, 24), seed=st.integers(0, 9), limits=limits)
    def build(self, num_blocks: int, seed: int, limits: dict[str, int]) -> None:
        self.world = SchedulerWorld(num_blocks=num_blocks, seed=seed, **limits)

    @rule(
        prompt=prompts,
        max_generated=st.integers(0, 9),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "other"]),
        n=st.sampled_from([1, 1, 1, 3]),
        scores_prompt=st.booleans(),
        encoder=inputs,
        timeout=st.none() | st.integers(1, 9),
    )
    def add(self, scores_prompt: bool, timeout: int | None, **request: object) -> None:
        scores_prompt |= request["max_generated"] == 0  # who wants neither does not reach the scheduler
        deadline = None if timeout is None else self.world.now + timeout
        try:
            self.world.add(deadline=deadline, scores_prompt=scores_prompt, **request)
        except QueueFullError:
            assert len(self.world.scheduler.waiting) >= self.world.limits.max_waiting_requests
        except RequestNeverFitsError:
            pass  # the world has checked that it is true

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        self.world.steps(count)

    @rule(faulty=maybe_row, ending=maybe_row)
    def step_that_ends_requests(self, faulty: int | None, ending: int | None) -> None:
        self.world.step(faulty=faulty, ending=ending)

    @rule()
    def fail_step(self) -> None:
        self.world.fail_step()

    @rule()
    def preempt_all(self) -> None:
        self.world.preempt_all()

    @rule()
    def clear_cache(self) -> None:
        self.world.clear_cache()

    @rule()
    def suspend(self) -> None:
        self.world.suspend()

    @rule()
    def reset(self) -> None:
        self.world.reset()

    @precondition(lambda self: self.world.watched)
    @rule(pick=st.integers(0, 9))
    def abort(self, pick: int) -> None:
        watched = list(self.world.watched.values())
        self.world.abort(watched[pick % len(watched)].request)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.world.wait(seconds)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


def test_scheduler_keeps_its_promises_in_any_order_of_events() -> None:
    explore(SchedulerMachine, max_examples=150, num_steps=25)


def test_scheduler_keeps_its_promises_in_long_random_plays() -> None:
    """Longer than what hypothesis draws, and so with more preemptions."""
    num_preemptions = 0
    for seed in range(200):
        world = SchedulerWorld(seed=seed, **random_limits(seed))
        play_with_scheduler(world, seed)
        num_preemptions += world.scheduler.num_preemptions
    assert num_preemptions > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scheduler_keeps_its_promises_in_many_long_random_plays() -> None:
    for seed in range(200, 10_000):
        play_with_scheduler(SchedulerWorld(seed=seed, **random_limits(seed)), seed, num_actions=100)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scheduler_keeps_its_promises_in_many_orders_of_events() -> None:
    explore(SchedulerMachine, max_examples=4000, num_steps=40)
