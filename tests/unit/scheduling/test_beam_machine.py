"""Beam searches among ordinary requests, in any order of events, with little memory; see BeamWorld for what holds."""

import contextlib
import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kilotron.errors import QueueFullError, RequestNeverFitsError
from unit.scheduling.beam_world import BeamWorld
from unit.scheduling.random_play import PREFIXES, random_limits
from unit.scheduling.state_machine import explore

limits = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 2, 4]),
        "max_requests": st.integers(2, 8),
        "max_tokens": st.integers(1, 16),
        "max_logits_tokens": st.integers(1, 10),
        "max_waiting_requests": st.integers(4, 12),
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
inputs = st.one_of(st.none(), prompts)
maybe_row = st.none() | st.integers(0, 5)


class BeamMachine(RuleBasedStateMachine):
    """Few blocks, so that whole searches are preempted."""

    @initialize(num_blocks=st.integers(6, 30), seed=st.integers(0, 9), limits=limits)
    def build(self, num_blocks: int, seed: int, limits: dict[str, int]) -> None:
        self.world = BeamWorld(num_blocks=num_blocks, seed=seed, **limits)

    @rule(
        prompt=prompts,
        width=st.sampled_from([1, 2, 3, 4]),
        max_generated=st.integers(1, 9),
        priority=st.integers(-1, 1),
        timeout=st.none() | st.integers(1, 9),
        encoder=inputs,
    )
    def add(self, **request: object) -> None:
        with contextlib.suppress(QueueFullError, RequestNeverFitsError):
            self.world.add(**request)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule(faulty=maybe_row, ending=maybe_row)
    def step_that_ends_requests(self, faulty: int | None, ending: int | None) -> None:
        self.world.step(faulty=faulty, ending=ending)

    @rule()
    def preempt_all(self) -> None:
        self.world.preempt_all()

    @rule()
    def suspend(self) -> None:
        self.world.suspend()

    @precondition(lambda self: self.world.searches)
    @rule(pick=st.integers(0, 9))
    def abort(self, pick: int) -> None:
        ids = list(self.world.searches)
        self.world.abort(ids[pick % len(ids)])

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.world.wait(seconds)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


def play(seed: int, num_actions: int = 60) -> BeamWorld:
    """Searches and requests come faster than they can be served."""
    rng = random.Random(seed)
    options = random_limits(seed) | {"max_requests": rng.randint(2, 8), "num_blocks": rng.randint(6, 24)}
    world = BeamWorld(seed=seed, **options)
    for _ in range(num_actions):
        action = rng.choices(["add", "step", "abort", "wait", "preempt_all", "suspend"], [6, 12, 1, 1, 0.2, 0.2])[0]
        if action == "add":
            prompt = [*rng.choice(PREFIXES), *(rng.randrange(2) for _ in range(rng.randint(1, 6)))]
            width, length = rng.choice([1, 2, 3, 4]), rng.choice([1, 3, 8, 12])
            try:
                encoder = rng.choice([None, None, *PREFIXES])
                priority = rng.choice([0, 0, -1, 1])
                world.add(prompt, width=width, max_generated=length, priority=priority, encoder=encoder)
            except (QueueFullError, RequestNeverFitsError):
                continue
        elif action == "step":
            faulty = rng.choice([None] * 9 + [rng.randrange(6)])
            world.step(faulty=faulty, ending=rng.choice([None, None, rng.randrange(6)]))
        elif action == "wait":
            world.wait(1)
        elif action == "abort":
            if world.searches:
                world.abort(rng.choice(list(world.searches)))
        else:
            getattr(world, action)()
    world.finish()
    return world


def test_searches_keep_their_promises_in_any_order_of_events() -> None:
    explore(BeamMachine, max_examples=120, num_steps=25)


def test_searches_keep_their_promises_in_long_random_plays() -> None:
    assert sum(play(seed).scheduler.num_preemptions for seed in range(150)) > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_searches_keep_their_promises_in_many_long_random_plays() -> None:
    for seed in range(200, 6_000):
        play(seed, num_actions=100)
