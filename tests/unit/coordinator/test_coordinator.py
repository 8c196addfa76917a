"""The coordinator behind its real socket."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from kilotron.coordinator.coordinator import DataParallelInferenceCoordinator
from kilotron.coordinator.coordinator_config import CoordinatorConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.sockets import free_tcp_address
from kilotron.coordinator.wire import (
    MAX_FRAME_BYTES,
    Abort,
    ClientOutput,
    EngineOutput,
    Failure,
    Join,
    Message,
    MetricsAnswer,
    MetricsQuery,
    ServiceStatus,
    Unwelcome,
    Work,
    encode,
)
from kilotron.errors import ConfigError
from unit.coordinator.core.core_world import FACTS, hello_of, incarnation_of, output_of, submission_of
from unit.coordinator.raw_peers import RawPeer, RunningCoordinator, running_coordinator

ID = "a" * 32
GARBAGE = {
    "no msgpack": [b"\xc1 garbage"],
    "truncated": [encode(submission_of(ID))[:-3]],
    "two frames": [encode(submission_of(ID)), b"more"],
    "empty": [b""],
    "unknown tag": [msgspec.msgpack.encode([999])],
    "deep": [b"\x91" * 100_000],
    "wrong types": [msgspec.msgpack.encode(["submit", 1, 2, 3])],
    "not hello": [encode(submission_of(ID))],
}


@pytest.fixture
def running() -> Iterator[RunningCoordinator]:
    with running_coordinator() as coordinator:
        yield coordinator


def round_trip(running: RunningCoordinator, client: RawPeer, engine: RawPeer, request_id: str = ID) -> None:
    client.say(submission_of(request_id))
    assert engine.wait_for(Work).submission.request_id == request_id
    engine.say(EngineOutput([output_of(request_id, [5], finish="stop")], []))
    assert client.wait_for(ClientOutput).outputs[0].token_ids == [5]


def test_a_request_goes_through_and_its_output_comes_back(running: RunningCoordinator) -> None:
    replica, client = running.replica(), running.client()
    round_trip(running, client, replica.engine)


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_from_strangers_and_peers_changes_nothing(running: RunningCoordinator, frames: list[bytes]) -> None:
    replica, client, stranger = running.replica(), running.client(), running.stranger()
    stranger.send(*frames)
    assert stranger.wait_for(Unwelcome).reason == "hello"
    if len(frames) > 1 or frames != GARBAGE["not hello"]:
        client.send(*frames)
        replica.engine.send(*frames)
    round_trip(running, client, replica.engine)
    client.say(MetricsQuery("m"))
    assert client.wait_for(MetricsAnswer).counters["protocol_errors"] >= 1


def test_a_frame_that_is_too_long_costs_only_its_own_connection(running: RunningCoordinator) -> None:
    replica, client, stranger = running.replica(), running.client(), running.stranger()
    stranger.send(b"\xc4" + bytes(MAX_FRAME_BYTES + 1))
    round_trip(running, client, replica.engine)


def test_a_stranger_never_gets_a_prompt(running: RunningCoordinator) -> None:
    client, stranger = running.client(), running.stranger()
    stranger.send(b"")
    wrong = msgspec.structs.replace(hello_of("engine", incarnation_of(7)), token="0" * 64)
    stranger.say(wrong)
    stranger.say(Join(FACTS))
    client.say(submission_of(ID))
    assert client.wait_for(Failure).error.code == "ServiceUnavailableError"
    replica = running.replica()
    round_trip(running, client, replica.engine, "b" * 32)
    assert {type(message) for message in stranger.received(Message)} == {Unwelcome}


def test_a_wrong_version_and_a_replayed_hello_have_no_effect(running: RunningCoordinator) -> None:
    replica, client, stranger = running.replica(), running.client(), running.stranger()
    hello = hello_of("client", incarnation_of(50), credentials=running.credentials)
    stranger.say(msgspec.structs.replace(hello, protocol_version=99))
    assert stranger.wait_for(Unwelcome).reason == "version"
    client.say(submission_of(ID))
    client.hello(client.incarnation)
    assert replica.engine.wait_for(Work).submission.request_id == ID
    replica.engine.say(EngineOutput([output_of(ID, [5], finish="stop")], []))
    assert client.wait_for(ClientOutput).outputs[0].token_ids == [5]


def test_a_client_that_closes_its_connection_has_its_requests_aborted(running: RunningCoordinator) -> None:
    replica, client = running.replica(), RawPeer(running.credentials)
    client.hello(incarnation_of(77))
    client.say(submission_of(ID))
    replica.engine.wait_for(Work)
    client.close()
    aborts: list[Abort] = []
    for offset in range(1000):
        replica.engine.say(EngineOutput([output_of(ID, [5], offset=offset)], []))
        time.sleep(0.001)  # until the connection's end has come through, sending to it works
        if aborts := replica.engine.received(Abort):
            break
    assert [abort.request_id for abort in aborts] == [ID]


@contextmanager
def engine_process(running: RunningCoordinator, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    secret = folder / "credentials"
    secret.touch(mode=0o600)
    secret.write_bytes(running.credentials.to_json())
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-m", "unit.coordinator.engine_child", str(secret)], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_an_engine_process_that_is_killed_is_noticed_at_once(running: RunningCoordinator, tmp_path: Path) -> None:
    client = running.client()
    with engine_process(running, tmp_path) as process:
        client.wait_until_ready(60)
        client.say(submission_of(ID))
        client.wait_for(ServiceStatus, num_in_flight=1)
        start = time.monotonic()
        process.send_signal(signal.SIGKILL)
        failure = client.wait_for(Failure)
        assert (failure.request_id, failure.error.code) == (ID, "EngineDiedError")
        assert time.monotonic() - start < 1.0


def test_an_engine_process_that_hangs_is_killed(tmp_path: Path) -> None:
    with running_coordinator(heartbeat_s=0.5) as running, engine_process(running, tmp_path) as process:
        running.client().wait_until_ready(60)
        process.send_signal(signal.SIGSTOP)
        assert process.wait(10) == -signal.SIGKILL


def test_curve_keeps_out_whoever_has_no_key() -> None:
    running = RunningCoordinator(free_tcp_address("127.0.0.1"))
    try:
        replica, client = running.replica(), running.client()
        plain = msgspec.structs.replace(running.credentials, curve=None)
        other = Credentials.create(running.credentials.address)
        for credentials in (plain, msgspec.structs.replace(other, secret=running.credentials.secret)):
            stranger = RawPeer(credentials)
            stranger.try_to_say(hello_of("client", incarnation_of(5), credentials=running.credentials))
            with pytest.raises(TimeoutError):
                stranger.wait_for(Message, 0.3)
            stranger.close()
        round_trip(running, client, replica.engine)
    finally:
        running.close()


def test_an_address_in_use_is_a_configuration_error(running: RunningCoordinator) -> None:
    with pytest.raises(ConfigError):
        DataParallelInferenceCoordinator(CoordinatorConfig(), Credentials.create("ipc:///nowhere/at/all"))


def test_stopping_is_quick_and_can_be_repeated() -> None:
    with running_coordinator() as running:
        start = time.monotonic()
        for _ in range(3):
            running.coordinator.stop()
        running.thread.join(5)
        running.coordinator.stop()
        assert time.monotonic() - start < 1.0


def test_the_coordinator_imports_no_torch() -> None:
    program = "import sys, kilotron.coordinator.coordinator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_round_trips_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints; a machine under load is no failure."""
    with running_coordinator(heartbeat_s=60.0) as running:  # nobody beats here
        time_round_trips(running, capsys)


def time_round_trips(running: RunningCoordinator, capsys: pytest.CaptureFixture[str]) -> None:
    replica, client = running.replica(), running.client()
    start, cpu = time.perf_counter(), cpu_of(running)
    for number in range(3000):
        round_trip(running, client, replica.engine, f"{number:032x}")
    wall, cpu = time.perf_counter() - start, cpu_of(running) - cpu
    client.say(submission_of(ID))
    replica.engine.wait_for(Work)
    streaming_cpu = cpu_of(running)
    for number in range(3000):
        replica.engine.say(EngineOutput([output_of(ID, [5], offset=number)], []))
        client.wait_for(ClientOutput)
    streaming_cpu = cpu_of(running) - streaming_cpu
    with capsys.disabled():
        print(f"\nround trip {wall / 3000 * 1e6:.0f} us, {cpu / 3000 * 1e6:.0f} us of CPU in the coordinator; ", end="")
        print(f"a streamed token {streaming_cpu / 3000 * 1e6:.0f} us of CPU")


def cpu_of(running: RunningCoordinator) -> float:
    assert running.thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(running.thread.ident))
