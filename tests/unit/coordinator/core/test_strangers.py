"""What peers without a right to it cannot do: M1-M9 of reliability.md 1.1, and F08."""

import msgspec
import pytest

from kilotron.coordinator.wire import (
    COORDINATOR_DECODER,
    AbortById,
    ClientOutput,
    Control,
    ControlAnswer,
    EngineOutput,
    Failure,
    Join,
    Message,
    Unwelcome,
    Welcome,
    Work,
)
from kilotron.errors import ProtocolError
from unit.coordinator.core.core_world import (
    CREDENTIALS,
    FACTS,
    CoreWorld,
    hello_of,
    incarnation_of,
    output_of,
    submission_of,
)

STRANGER = b"stranger"
ID = "a" * 32


def reasons(world: CoreWorld, peer: bytes) -> list[str]:
    return [message.reason for message in world.take(peer, Unwelcome)]


@pytest.mark.parametrize("frame", [b"\xc1garbage", b"", msgspec.msgpack.encode([999]), b"\x93\xa5hello"])
def test_m1_m3_garbage_is_no_message(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        COORDINATOR_DECODER.decode(frame)


def test_m1_m2_garbage_is_counted_and_changes_nothing() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(ID))
    for peer in (STRANGER, engine, client):
        world.garbage(peer)
    world.give(engine, output_of(ID, [5], finish="stop"))
    assert [output.token_ids for message in world.take(client, ClientOutput) for output in message.outputs] == [[5]]
    assert world.counters()["protocol_errors"] == 3


def test_m4_a_client_that_dies_takes_only_its_own_requests_with_it() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    dying, living = world.client(), world.client()
    world.say(dying, submission_of("1" * 32))
    world.say(living, submission_of("2" * 32))
    world.leave(dying)
    assert [type(message).__name__ for message in world.mail[engine]][-1] == "Abort"
    world.give(engine, output_of("1" * 32, [5], finish="stop"), output_of("2" * 32, [6], finish="stop"))
    assert world.take(dying, ClientOutput) == []
    assert len(world.take(living, ClientOutput)) == 1


@pytest.mark.parametrize("message", [Join(FACTS), EngineOutput([output_of(ID, [5])], []), submission_of("b" * 32)])
def test_m5_a_stranger_is_told_to_say_hello_and_never_gets_a_prompt(message: Message) -> None:
    world = CoreWorld()
    world.say(STRANGER, message)
    world.garbage(STRANGER)
    world.replica()
    world.say(world.client(), submission_of(ID))
    assert [type(mail) for mail in world.mail[STRANGER]] == [Unwelcome]
    assert world.counters()["protocol_errors"] == 2


def test_m5_strangers_are_answered_once_a_second() -> None:
    world = CoreWorld()
    for _ in range(100):
        world.garbage(STRANGER)
    assert reasons(world, STRANGER) == ["hello"]
    world.wait(1.1)
    world.garbage(STRANGER)
    assert reasons(world, STRANGER) == ["hello"]


def test_m7_without_an_engine_a_request_is_refused_at_once_with_a_time_to_come_back() -> None:
    world = CoreWorld()
    client = world.client()
    world.say(client, submission_of(ID))
    (failure,) = world.take(client, Failure)
    assert failure.error.code == "ServiceUnavailableError"
    assert failure.error.retry_after_s is not None
    assert 1 <= failure.error.retry_after_s <= 30


@pytest.mark.parametrize("verb", ["pause", "suspend", "resume"])
def test_m8_lifecycle_verbs_need_a_controllers_token(verb: str) -> None:
    world = CoreWorld()
    world.replica()
    client = world.client()
    world.say(client, Control("n", verb))  # type: ignore[arg-type]
    (answer,) = world.take(client, ControlAnswer)
    assert answer.error is not None
    assert answer.error.code == "ProtocolError"
    assert world.status().state == "running"


def test_m8_an_engine_cannot_use_verbs_at_all() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    world.take(engine, Message)
    world.say(engine, Control("n", "pause"))
    assert world.mail[engine] == []
    assert world.status().state == "running"


def test_m8_a_client_aborts_nobodys_requests_but_its_owners() -> None:
    world = CoreWorld()
    world.replica()
    client, other = world.client(), world.client()
    world.say(client, submission_of(ID, owner="me"))
    for owner, code in ((None, "ProtocolError"), ("you", "RequestNotFoundError"), ("", "RequestNotFoundError")):
        world.say(other, AbortById("n", ID, owner))
        (answer,) = world.take(other, ControlAnswer)
        assert answer.error is not None
        assert answer.error.code == code
    assert world.core.ledger.get(ID) is not None


def test_m9_the_same_id_twice_is_refused_and_the_first_completes() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client, other = world.client(), world.client()
    world.say(client, submission_of(ID))
    world.say(other, submission_of(ID))
    assert [failure.error.code for failure in world.take(other, Failure)] == ["DuplicateRequestError"]
    world.give(engine, output_of(ID, [5], finish="stop"))
    world.give(engine, output_of(ID, [5], finish="stop"))
    assert len(world.take(client, ClientOutput)) == 1
    world.say(other, submission_of(ID))
    assert [failure.error.code for failure in world.take(other, Failure)] == ["DuplicateRequestError"]


def test_a_hello_with_a_wrong_token_role_or_version_is_refused_with_the_reason() -> None:
    world = CoreWorld()
    good = hello_of("engine", incarnation_of(7))
    for change, reason in (
        ({"token": "x"}, "token"),
        ({"token": "\ud800"[:0]}, "token"),
        ({"token": CREDENTIALS.token("client")}, "token"),
        ({"role": "controller"}, "token"),
        ({"incarnation": "short"}, "token"),
        ({"protocol_version": 99}, "version"),
    ):
        world.say(STRANGER, msgspec.structs.replace(good, **change))
        assert reasons(world, STRANGER) == [reason]
    world.say(STRANGER, Join(FACTS))
    assert world.status().replicas == []


def test_a_connection_cannot_become_somebody_else() -> None:
    world = CoreWorld()
    client = world.client()
    world.say(client, hello_of("engine", incarnation_of(99)))
    assert reasons(world, client) == ["token"]
    world.say(client, Join(FACTS))
    assert world.status().replicas == []


def test_a_hello_that_is_replayed_on_a_clients_connection_changes_nothing() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(ID))
    hello = hello_of("client", incarnation_of(int(client.split(b"-")[1])))
    world.say(client, hello)
    assert len(world.take(client, Welcome)) == 2
    world.give(engine, output_of(ID, [5], finish="stop"))
    assert len(world.take(client, ClientOutput)) == 1


def test_a_replica_with_another_model_is_refused() -> None:
    world = CoreWorld()
    world.replica()
    other, _ = world.replica(msgspec.structs.replace(FACTS, model_hash="another"))
    assert reasons(world, other) == ["model"]
    limits, _ = world.replica(msgspec.structs.replace(FACTS, max_requests=99))
    assert reasons(world, limits) == ["model"]
    world.say(world.client(), submission_of(ID))
    assert world.take(other, Work) == []


def test_what_a_peer_of_the_wrong_role_sends_is_counted_and_dropped() -> None:
    world = CoreWorld()
    engine, pulse = world.replica()
    client = world.client()
    world.say(client, EngineOutput([], []))
    world.say(engine, submission_of(ID))
    world.say(pulse, Join(FACTS))
    assert world.counters()["protocol_errors"] == 3
    assert len(world.core.ledger) == 0
