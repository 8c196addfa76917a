"""Engines and clients that die, hang, come back or forget, and messages that get lost."""

from typing import Any

import msgspec
import pytest

from kilotron.coordinator.wire import (
    Abort,
    ClientOutput,
    EngineOutput,
    Failure,
    Join,
    Message,
    ServiceStatus,
    Unwelcome,
    Work,
)
from unit.coordinator.core.core_world import FACTS, CoreWorld, hello_of, incarnation_of, output_of, submission_of

ID = "a" * 32


def incarnation_at(peer: bytes) -> str:
    return incarnation_of(int(peer.split(b"-")[1]))


class TwoReplicas:
    """A world where the request ID runs on `first`, and `second` is idle."""

    def __init__(self, **fields: Any) -> None:
        self.world = CoreWorld()
        self.first, self.first_pulse = self.world.replica()
        self.second, self.second_pulse = self.world.replica()
        self.client = self.world.client()
        self.world.say(self.client, submission_of(ID, **fields))
        assert len(self.world.take(self.first, Work)) == 1

    def errors(self) -> list[tuple[str, bool]]:
        return [(failure.error.code, failure.error.is_retryable) for failure in self.world.take(self.client, Failure)]


def test_a_request_without_output_starts_again_elsewhere_with_the_same_seed() -> None:
    two = TwoReplicas(seed=77)
    two.world.leave(two.first)
    (work,) = two.world.take(two.second, Work)
    assert (work.submission.request_id, work.submission.seed) == (ID, 77)
    two.world.give(two.second, output_of(ID, [5], finish="stop"))
    assert two.errors() == []
    assert two.world.counters()["request_retries"] == 1


def test_a_request_that_comes_back_is_ahead_of_those_that_wait() -> None:
    two = TwoReplicas()
    for number in range(2 * 2 * FACTS.max_requests):
        two.world.say(two.client, submission_of(f"{number:032x}"))
    assert two.world.core.ledger.num_queued == 1
    two.world.take(two.second, Work)
    two.world.leave(two.first)
    two.world.give(two.second, output_of(f"{0:032x}", [5], finish="stop"))
    assert [work.submission.request_id for work in two.world.take(two.second, Work)] == [ID]


def test_a_request_with_output_fails_and_may_be_sent_again() -> None:
    two = TwoReplicas()
    two.world.give(two.first, output_of(ID, [5]))
    two.world.leave(two.first)
    assert two.errors() == [("EngineDiedError", True)]
    assert two.world.take(two.second, Work) == []


def test_a_request_in_flight_at_two_deaths_is_quarantined() -> None:
    two = TwoReplicas()
    two.world.leave(two.first)
    two.world.leave(two.second)
    assert two.errors() == [("EngineDiedError", False)]


def test_when_the_last_engine_dies_nobody_waits_for_nothing() -> None:
    two = TwoReplicas()
    for number in range(20):
        two.world.say(two.client, submission_of(f"{number:032x}"))
    two.world.leave(two.second)
    two.world.leave(two.first)
    assert len(two.errors()) == 21
    assert len(two.world.core.ledger) == 0


def test_what_a_fenced_replica_sends_is_dropped_and_answered() -> None:
    two = TwoReplicas()
    two.world.leave(two.first_pulse)
    two.world.give(two.first, output_of(ID, [5], finish="stop"))
    assert two.world.take(two.client, ClientOutput) == []
    assert [message.reason for message in two.world.take(two.first, Unwelcome)] == ["fenced"]
    two.world.say(b"new", hello_of("engine", incarnation_at(two.first)))
    assert [message.reason for message in two.world.take(b"new", Unwelcome)] == ["fenced"]


def test_a_silent_replica_is_slow_then_dead_and_killed() -> None:
    world = CoreWorld()
    world.replica(pid=4242)
    client = world.client()
    world.say(client, submission_of(ID))
    world.wait(1.7, (client,))
    assert not world.status().replicas[0].is_live
    assert world.take(client, Failure) == []
    world.wait(0.5, (client,))
    assert world.kills == [4242]
    assert [failure.error.code for failure in world.take(client, Failure)] == ["EngineDiedError"]
    assert world.status().replicas == []
    assert world.watches[:1] == [(b"pulse-1", 4242)]


def test_a_replica_that_falls_silent_while_it_loads_has_as_long_as_a_step() -> None:
    world = CoreWorld(step_timeout_s=10.0)
    world.say(b"pulse", hello_of("pulse", incarnation_of(77), 4242))
    world.beat(b"pulse", "loading")
    world.wait(9.5)
    assert world.kills == []
    world.wait(1.0)
    assert world.kills == [4242]


def test_a_replica_that_only_pulses_but_does_not_step_is_dead_after_the_step_timeout() -> None:
    world = CoreWorld(step_timeout_s=3.0)
    _, pulse = world.replica(pid=4242)
    for _ in range(31):
        world.beat(pulse, num_running=1, num_steps=7)
        world.wait(0.1)
    assert world.kills == [4242]


def test_a_replica_in_a_long_step_gets_no_work_and_is_not_dead() -> None:
    two = TwoReplicas()
    two.world.beat(two.first_pulse, step_age_s=2.5, num_running=1)
    for number in range(3):
        two.world.say(two.client, submission_of(f"{number:032x}"))
    assert (len(two.world.take(two.first, Work)), len(two.world.take(two.second, Work))) == (0, 3)
    two.world.beat(two.first_pulse, step_age_s=0.0, num_running=1, num_steps=1)
    assert all(replica.is_live for replica in two.world.status().replicas)
    assert two.errors() == []


def test_a_coordinator_that_was_stopped_itself_blames_nobody() -> None:
    two = TwoReplicas()
    two.world.wait(0.1)
    two.world.now += 60
    two.world.core.tick(two.world.now)
    two.world.collect()
    assert two.errors() == []
    assert len(two.world.status().replicas) == 2


def test_a_gap_in_the_output_means_that_the_request_is_lost_there() -> None:
    two = TwoReplicas()
    two.world.give(two.first, output_of(ID, [6], offset=1))
    assert len(two.world.take(two.first, Abort)) == 1
    assert len(two.world.take(two.second, Work)) == 1
    two.world.give(two.first, output_of(ID, [7], offset=2))
    two.world.give(two.second, output_of(ID, [5]), output_of(ID, [7], offset=2))
    assert [[o.token_ids for o in m.outputs] for m in two.world.mail[two.client] if isinstance(m, ClientOutput)] == [
        [[5]]
    ]
    assert two.errors() == [("EngineDiedError", True)]


def test_output_comes_before_the_news_of_the_end_that_followed_it() -> None:
    two = TwoReplicas()
    two.world.take(two.client, Message)
    two.world.give(two.first, output_of(ID, [5]), output_of(ID, [9], offset=7))
    assert [type(message) for message in two.world.mail[two.client]] == [ClientOutput, Failure]


def test_output_that_comes_twice_is_not_forwarded_twice() -> None:
    two = TwoReplicas()
    two.world.give(two.first, output_of(ID, [5]))
    two.world.give(two.first, output_of(ID, [5]))
    tokens = [o.token_ids for m in two.world.mail[two.client] if isinstance(m, ClientOutput) for o in m.outputs]
    assert tokens == [[5]]
    assert two.errors() == [("EngineDiedError", True)]


def test_a_replica_that_says_hello_again_has_lost_what_it_ran_and_may_get_it_again() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(ID))
    world.say(b"engine-again", hello_of("engine", incarnation_at(engine)))
    assert world.take(b"engine-again", Work) == []
    world.give(engine, output_of(ID, [5], finish="stop"))
    world.say(b"engine-again", Join(FACTS))
    assert len(world.take(b"engine-again", Work)) == 1
    assert world.take(client, ClientOutput) == []
    world.give(b"engine-again", output_of(ID, [5], finish="stop"))
    assert len(world.take(client, ClientOutput)) == 1


def test_work_that_never_arrived_is_noticed_by_the_lease() -> None:
    two = TwoReplicas()
    two.world.say(two.client, submission_of("b" * 32))
    for _ in range(4):
        two.world.now += 0.9
        two.world.beat(two.first_pulse, held_ids=[])
        two.world.beat(two.second_pulse, held_ids=["b" * 32])
    assert [work.submission.request_id for work in two.world.take(two.second, Work)] == ["b" * 32, ID]
    assert two.errors() == []


def test_a_request_that_an_engine_holds_and_nobody_knows_is_aborted() -> None:
    two = TwoReplicas()
    two.world.beat(two.second_pulse, held_ids=[ID, "unknown"])
    assert {abort.request_id for abort in two.world.take(two.second, Abort)} == {ID, "unknown"}
    two.world.beat(two.first_pulse, held_ids=[ID])
    assert two.world.take(two.first, Abort) == []


def test_a_request_that_its_client_does_not_hold_twice_is_aborted() -> None:
    two = TwoReplicas()
    for held_ids in ([], [ID], [], []):
        assert two.world.take(two.first, Abort) == []
        two.world.now += 0.2
        two.world.beat(two.client, held_ids=held_ids)
    assert len(two.world.take(two.first, Abort)) == 1


def test_a_request_that_only_its_client_knows_is_ended_once() -> None:
    two = TwoReplicas()
    for _ in range(2):
        two.world.now += 0.2
        two.world.beat(two.client, held_ids=[ID, "lost"])
    assert [failure.request_id for failure in two.world.take(two.client, Failure)] == ["lost"]


def test_a_client_that_has_not_read_of_the_end_yet_is_not_told_again() -> None:
    two = TwoReplicas()
    two.world.give(two.first, output_of(ID, [5], finish="stop"))
    for _ in range(2):
        two.world.now += 0.2
        two.world.beat(two.client, held_ids=[ID])
    assert two.errors() == []


def test_a_silent_client_is_dead_and_its_requests_are_aborted() -> None:
    two = TwoReplicas()
    two.world.wait(2.2, (two.first_pulse, two.second_pulse))
    assert [abort.request_id for abort in two.world.take(two.first, Abort)] == [ID]
    two.world.take(two.client, Message)
    two.world.beat(two.client)
    assert [type(message) for message in two.world.mail[two.client]] == [Unwelcome]


def test_a_client_that_connects_again_starts_with_nothing() -> None:
    two = TwoReplicas()
    two.world.say(b"client-again", hello_of("client", incarnation_at(two.client)))
    assert [abort.request_id for abort in two.world.take(two.first, Abort)] == [ID]
    assert len(two.world.take(b"client-again", ServiceStatus)) >= 1


@pytest.mark.parametrize("has_output", [False, True])
def test_a_request_past_its_deadline_is_not_tried_again(has_output: bool) -> None:
    two = TwoReplicas(timeout_s=1.0)
    if has_output:
        two.world.give(two.first, output_of(ID, [5]))
    two.world.now += 1.5
    two.world.leave(two.first)
    assert two.errors() == [("DeadlineExceededError", False)]


def test_a_smaller_cache_of_a_later_replica_is_what_clients_learn() -> None:
    world = CoreWorld()
    client = world.client()
    world.replica()
    world.take(client, Message)
    world.replica(msgspec.structs.replace(FACTS, num_blocks=20))
    facts = [status.facts for status in world.take(client, ServiceStatus) if status.facts is not None]
    assert [found.num_blocks for found in facts] == [20]


def test_late_output_for_a_request_that_ended_is_dropped() -> None:
    two = TwoReplicas()
    two.world.say(two.client, Abort(ID))
    two.world.give(two.first, output_of(ID, [5]))
    two.world.say(two.first, EngineOutput([output_of("unknown", [5])], []))
    assert two.world.take(two.client, ClientOutput) == []
    assert two.world.counters()["late_outputs"] == 2


def test_a_lost_request_does_not_hold_up_those_that_may_go_where_it_may_not() -> None:
    two = TwoReplicas()
    for number in range(2 * FACTS.max_requests):
        two.world.say(two.client, submission_of(f"{number:032x}", params={"n": 2}))
    assert two.world.core.ledger.num_queued > 0
    two.world.beat(two.second_pulse, step_age_s=5.0, num_running=1)
    two.world.give(two.first, output_of(ID, [6], offset=1))
    assert two.errors() == [("EngineDiedError", True)]
