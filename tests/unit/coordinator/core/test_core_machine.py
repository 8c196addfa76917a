"""The coordinator in any order of requests, outputs, faults, deaths and verbs; what must hold is in ServicePlay."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from kilotron.config import KVMode
from kilotron.coordinator.wire import Verb
from unit.coordinator.core.service_play import Fault, ServicePlay

faults: st.SearchStrategy[Fault] = st.sampled_from(["none"] * 6 + ["drop", "drop", "twice", "backwards", "choice"])  # type: ignore[list-item]
verbs: st.SearchStrategy[Verb] = st.sampled_from(["pause", "unpause", "suspend", "resume", "unpause"])
kv_modes: st.SearchStrategy[KVMode] = st.sampled_from(["persist", "offload", "recompute"])
pick = st.integers(0, 99)
mostly = st.sampled_from([True, True, True, False])
rarely = st.sampled_from([False, False, True])
has_engines = precondition(lambda self: any(not engine.is_dead for engine in self.play.engines))
has_clients = precondition(lambda self: bool(self.play.clients))
has_requests = precondition(lambda self: bool(self.play.requests) and bool(self.play.clients))


class CoreMachine(RuleBasedStateMachine):
    """Few credits and a short queue, so that limits are met all the time."""

    @initialize(
        routing=st.sampled_from(["longest_prefix", "least_load", "round_robin"]),
        max_queued_requests=st.integers(1, 6),
        max_queued_tokens=st.integers(4, 20),
        max_concurrent_per_key=st.integers(1, 3),
        num_engines=st.integers(2, 3),
    )
    def begin(self, num_engines: int, **options: Any) -> None:
        self.play = ServicePlay(**options)
        for _ in range(num_engines):
            self.play.add_engine()
        self.play.add_client()

    @precondition(lambda self: sum(not engine.is_dead for engine in self.play.engines) < 3)
    @rule()
    def add_engine(self) -> None:
        self.play.add_engine()

    @precondition(lambda self: len(self.play.clients) < 3)
    @rule()
    def add_client(self) -> None:
        self.play.add_client()

    @has_clients
    @rule(
        which=pick,
        count=st.integers(1, 4),
        n=st.sampled_from([1, 1, 2, 3]),
        num_tokens=st.integers(1, 6),
        timeout_s=st.none() | st.sampled_from([0.0, 0.3, 5.0]),
        priority=st.integers(-1, 1),
        owner=st.sampled_from(["", "", "me", "you"]),
    )
    def submit(self, which: int, count: int, **request: Any) -> None:
        for _ in range(count):
            self.play.submit(self.play.clients[which % len(self.play.clients)], **request)

    @has_requests
    @rule(which=pick, who=pick)
    def submit_again(self, which: int, who: int) -> None:
        self.play.submit_again(self.play.clients[who % len(self.play.clients)], self._request(which))

    @has_requests
    @rule(which=pick)
    def abort(self, which: int) -> None:
        self.play.abort(self._request(which))

    @has_clients
    @rule(which=pick, comes_again=st.booleans(), is_wanted=rarely)
    def lose_client(self, which: int, comes_again: bool, is_wanted: bool) -> None:
        if is_wanted:
            self.play.lose_client(self.play.clients[which % len(self.play.clients)], comes_again=comes_again)

    @has_engines
    @rule(which=pick, num_tokens=st.integers(1, 3), reads=mostly, fault=faults)
    def step(self, which: int, num_tokens: int, reads: bool, fault: Fault) -> None:
        engine = self._engine(which)
        if reads:
            self.play.read(engine)
        self.play.step(engine, num_tokens, fault)

    @has_engines
    @rule(num_tokens=st.integers(1, 3))
    def step_all(self, num_tokens: int) -> None:
        for engine in self.play.engines:
            if not engine.is_dead:
                self.play.read(engine)
                self.play.step(engine, num_tokens, "none")

    @has_engines
    @rule(which=pick)
    def forget(self, which: int) -> None:
        self.play.forget(self._engine(which))

    @has_engines
    @rule(which=pick, of=pick)
    def refuse(self, which: int, of: int) -> None:
        engine = self._engine(which)
        if engine.held:
            self.play.refuse(engine, list(engine.held)[of % len(engine.held)])

    @has_engines
    @rule(which=pick, by_pulse=st.booleans(), speaks_on=st.booleans(), is_wanted=rarely)
    def kill(self, which: int, by_pulse: bool, speaks_on: bool, is_wanted: bool) -> None:
        if not is_wanted:
            return
        engine = self._engine(which)
        self.play.read(engine)
        self.play.kill(engine, by_pulse=by_pulse)
        if speaks_on:
            self.play.step(engine, 2, "none")

    @has_engines
    @rule(which=pick, from_elsewhere=st.booleans(), is_wanted=rarely)
    def greet_again(self, which: int, from_elsewhere: bool, is_wanted: bool) -> None:
        if is_wanted:
            self.play.greet_again(self._engine(which), from_elsewhere=from_elsewhere)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.play.wait(seconds, all_beat=True)

    @rule(is_wanted=rarely)
    def silence(self, is_wanted: bool) -> None:
        if not is_wanted:
            return
        self.play.wait(2.5, all_beat=False)
        for engine in self.play.engines:
            engine.is_dead = True

    @rule(verb=verbs, kv_mode=kv_modes)
    def control(self, verb: Verb, kv_mode: KVMode) -> None:
        self.play.control(verb, kv_mode)

    @rule(which=pick)
    def garbage(self, which: int) -> None:
        peers = [*self.play.strangers, *self.play.clients, *(engine.engine for engine in self.play.engines)]
        self.play.world.garbage(peers[which % len(peers)])
        self.play.deliver()

    def teardown(self) -> None:
        if hasattr(self, "play"):
            self.play.finish()

    def _engine(self, which: int) -> Any:
        alive = [engine for engine in self.play.engines if not engine.is_dead]
        return alive[which % len(alive)]

    def _request(self, which: int) -> str:
        """A recent one."""
        return list(self.play.requests)[-1 - which % min(len(self.play.requests), 8)]


def play(max_examples: int, steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    profile = settings(
        max_examples=max_examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks
    )
    run_state_machine_as_test(CoreMachine, settings=profile)  # type: ignore[no-untyped-call]


def test_whatever_happens_every_request_ends_once_and_right() -> None:
    play(100, 40)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_happens_for_long_every_request_ends_once_and_right() -> None:
    play(1500, 80)
