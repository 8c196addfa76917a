"""The fault matrix of docs/reliability.md against a real process tree: engines, coordinator and front ends that are
killed or stopped under load. After each fault: nobody hung, nobody got a wrong or a second answer, all blocks free."""

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from service.generations import Counts, check_texts, right_texts, story
from service.http_calls import Call
from service.running_service import HEARTBEAT_S, RunningService, report, running, wait_for

STREAMS = [story(index, 500, stream=True) for index in range(6)]
# Answered as a whole: nothing of them has left the service before they end, so they can start again elsewhere.
WHOLE = [story(index, 500) for index in range(10, 14)]
BODIES = [*STREAMS, *WHOLE]
# What the bars say, and what a loaded machine is given in the asserts.
ENDED_WITHIN_S, SLACK = 1.0, 3.0
RESPAWN_S = 30.0


@pytest.fixture(scope="module")
def patient_replicas() -> Iterator[RunningService]:
    """For tests that stop engines for a while: silence is no death for ten seconds. At most three kills of each."""
    with running("--routing", "round_robin", num_replicas=2, heartbeat_s=5) as service:
        yield service


@pytest.fixture
def two_replicas() -> Iterator[RunningService]:
    """A service of its own for every test: one process may not die too often. Replicas take turns."""
    with running("--routing", "round_robin", "--frontend-replicas", "2", num_replicas=2) as service:
        yield service


def start_load(service: RunningService) -> list[Call]:
    """Every stream has begun when this returns; the whole ones are somewhere on their way."""
    calls = [service.start(body) for body in BODIES]
    for call in calls[: len(STREAMS)]:
        call.wait_chunks(5)
    return calls


def check_answers(calls: Sequence[Call], expected: Sequence[str]) -> None:
    for call in calls:
        call.wait()
    check_texts(calls, expected)


def report_end_of(calls: Sequence[Call], since: float, promise: str, bar_s: float = ENDED_WITHIN_S) -> None:
    """How long after the fault those ended that were hit."""
    ends = [call.ended_at - since for call in calls if call.outcome == "error"]
    report(promise, max(ends), bar_s)
    assert max(ends) < bar_s * SLACK


def num_up(service: RunningService) -> float:
    """Replicas that have joined and live, whatever state the service is in."""
    return sum(value for name, value in service.metrics().items() if name.startswith("replica_up/"))


def pids_of(service: RunningService) -> set[int]:
    return {child.pid for child in service.children("engine")}


# F01: engine killed


def test_an_engine_killed_under_load_costs_only_streams_that_had_begun(patient_replicas: RunningService) -> None:
    service = patient_replicas
    expected = right_texts(service, BODIES)
    counts = Counts(service)
    calls = start_load(service)

    killed_at = time.monotonic()
    killed = service.kill("engine", 1)
    check_answers(calls, expected)

    failed = [call for call in calls if call.outcome == "error"]
    assert 0 < len(failed) < len(STREAMS)
    assert all("stream" in call.body and call.error["type"] == "server_error" for call in failed)
    assert [call.outcome for call in calls[len(STREAMS) :]] == ["finished"] * len(WHOLE)
    assert counts.grown("request_retries_total") > 0
    report_end_of(calls, killed_at, "P07 F01 decode: streams end")
    assert service.ask("GET", "/ready").status == 200  # the other one serves
    service.wait_replaced(killed)
    report("P07 F01 respawned", time.monotonic() - killed_at, 3.0)
    counts.check(calls)
    assert killed not in pids_of(service)
    assert service.complete(story(1, 5)).outcome == "finished"


def test_requests_without_output_move_to_the_other_engine_once(patient_replicas: RunningService) -> None:
    service = patient_replicas
    expected = right_texts(service, STREAMS)
    counts = Counts(service)
    service.wait_ready(2, RESPAWN_S)
    # Stopped, so that it takes requests and gives nothing: as in the middle of a prefill.
    service.kill("engine", 0, signal.SIGSTOP)
    calls = [service.start(body) for body in STREAMS]
    wait_for(lambda: sum(call.num_chunks > 0 for call in calls) == len(calls) // 2, what="one replica's share")
    service.kill("engine")
    check_answers(calls, expected)

    assert [call.outcome for call in calls] == ["finished"] * len(calls)
    assert counts.grown("request_retries_total") == len(calls) // 2
    counts.check(calls)
    service.wait_ready(2, RESPAWN_S)


@pytest.mark.slow
def test_an_idle_engine_killed_is_replaced_and_nobody_notices(patient_replicas: RunningService) -> None:
    service = patient_replicas
    service.wait_ready(2, RESPAWN_S)
    counts = Counts(service)
    killed = service.kill("engine", 1)
    calls = [service.complete(story(index, 5)) for index in range(6)]

    assert [call.outcome for call in calls] == ["finished"] * 6
    service.wait_replaced(killed)
    counts.check(calls)


@pytest.mark.slow
def test_the_only_engine_killed_means_503_and_then_service_again() -> None:
    with running() as service:
        expected = right_texts(service, BODIES)
        counts = Counts(service)
        calls = start_load(service)
        killed_at = time.monotonic()
        service.kill("engine")
        report("P07 F06 not ready", wait_for(lambda: service.ask("GET", "/ready").status == 503), ENDED_WITHIN_S)
        refused = service.complete(story(1, 5))
        assert refused.status == 503
        assert 1 <= int(refused.response_headers["retry-after"]) <= 30
        assert service.ask("GET", "/health").status == 200
        check_answers(calls, expected)
        assert {call.outcome for call in calls} == {"error"}
        report_end_of(calls, killed_at, "P07 F06 requests end")
        report("P07 F06 ready again", service.wait_ready(1, RESPAWN_S), 3.0)
        counts.check([*calls, refused])
        assert service.complete_patiently(BODIES[0]).text == expected[0]


@pytest.mark.slow
def test_a_request_under_way_at_two_deaths_is_not_tried_a_third_time(patient_replicas: RunningService) -> None:
    service = patient_replicas
    service.wait_ready(2, RESPAWN_S)
    counts = Counts(service)
    engines = service.children("engine")
    for engine in engines:
        engine.send_signal(signal.SIGSTOP)
    calls = [service.start(story(index, 20)) for index in range(2)]  # one each
    wait_for(lambda: service.metrics()["num_requests_in_flight"] == 2, what="two requests")
    engines[0].kill()
    wait_for(lambda: counts.grown("request_retries_total") == 1, what="a retry")
    engines[1].kill()

    retried, other = sorted((call.wait() for call in calls), key=lambda call: call.status)
    assert (retried.status, retried.error["code"]) == (500, "engine_died")
    assert retried.response_headers["x-should-retry"] == "false"
    assert (other.status, other.response_headers["retry-after"]) == (503, "1")
    service.wait_ready(2, RESPAWN_S)
    counts.check(calls)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_engines_killed_at_any_moment_lose_and_double_nothing(two_replicas: RunningService, seed: int) -> None:
    service = two_replicas
    draw = random.Random(seed)
    bodies = [story(index, draw.randrange(1, 400), stream=draw.random() < 0.6) for index in range(24)]
    expected = right_texts(service, bodies)
    counts = Counts(service)
    calls: list[Call] = []
    for _ in range(4):
        calls += [service.start(body) for body in bodies]
        time.sleep(draw.random())
        service.wait_replaced(service.kill("engine"))  # the one that lives longest, so they take turns
    check_answers(calls, expected * 4)

    assert all(call.outcome in ("finished", "error") for call in calls)
    assert all("stream" in call.body for call in calls if call.outcome == "error" and call.num_chunks)
    report("P10 kills survived by", sum(call.outcome == "finished" for call in calls) / len(calls), 0, "of requests")
    counts.check(calls)


# F02: engine hung


@pytest.mark.slow
def test_a_hung_engine_is_noticed_killed_and_replaced(two_replicas: RunningService) -> None:
    service = two_replicas
    expected = right_texts(service, BODIES)
    service.wait_ready(2, RESPAWN_S)
    counts = Counts(service)
    calls = start_load(service)
    stopped_at = time.monotonic()
    hung = service.kill("engine", 0, signal.SIGSTOP)

    seconds = wait_for(lambda: hung not in pids_of(service), 10)
    report("P08 F02 hung engine killed", seconds, 2 * HEARTBEAT_S)
    assert seconds < 2 * HEARTBEAT_S * SLACK
    check_answers(calls, expected)
    assert "error" in {call.outcome for call in calls}
    report_end_of(calls, stopped_at, "P08 F02 requests end", 2 * HEARTBEAT_S + ENDED_WITHIN_S)
    service.wait_ready(2, RESPAWN_S)
    counts.check(calls)


@pytest.mark.slow
def test_a_service_whose_only_engine_hangs_says_that_it_is_not_ready() -> None:
    with running() as service:
        service.kill("engine", 0, signal.SIGSTOP)
        seconds = wait_for(lambda: service.ask("GET", "/ready").status == 503, 10)
        report("P08 P34 not ready", seconds, 2 * HEARTBEAT_S)
        assert seconds < 2 * HEARTBEAT_S * SLACK
        assert service.ask("GET", "/health").status == 200
        service.wait_ready(1, RESPAWN_S)


@pytest.mark.slow
def test_an_engine_that_was_only_late_joins_again_and_its_old_answers_are_dropped(two_replicas: RunningService) -> None:
    """Its coordinator is stopped, not it: engines keep their processes."""
    service = two_replicas
    service.wait_ready(2, RESPAWN_S)
    engines = pids_of(service)
    service.kill("coordinator", 0, signal.SIGSTOP)
    time.sleep(3 * HEARTBEAT_S)
    service.kill("coordinator", 0, signal.SIGCONT)

    service.wait_ready(2, 10)
    assert pids_of(service) == engines
    call = service.complete_patiently(STREAMS[0])
    assert call.outcome == "finished"


# F04: coordinator killed


@pytest.mark.slow
def test_a_coordinator_killed_under_load_is_replaced_and_engines_stay(two_replicas: RunningService) -> None:
    service = two_replicas
    expected = right_texts(service, BODIES)
    service.wait_ready(2, RESPAWN_S)
    engines = pids_of(service)
    calls = start_load(service)
    killed_at = time.monotonic()
    service.kill("coordinator")
    refused = [service.complete(story(1, 5))]

    check_answers(calls, expected)
    assert {call.outcome for call in calls} == {"error"}
    report_end_of(calls, killed_at, "P11 F04 requests end")
    assert refused[0].status == 503
    assert "retry-after" in refused[0].response_headers
    assert service.ask("GET", "/health").status == 200
    service.wait_ready(2, RESPAWN_S)
    report("P11 P12 F04 ready again", time.monotonic() - killed_at, 3.0)
    assert time.monotonic() - killed_at < 3.0 * SLACK
    assert pids_of(service) == engines
    assert service.complete_patiently(BODIES[0]).text == expected[0]
    service.wait_idle(5)


# F05: front end killed


@pytest.mark.slow
def test_a_front_end_killed_takes_only_its_own_connections_with_it(two_replicas: RunningService) -> None:
    service = two_replicas
    expected = right_texts(service, BODIES)
    service.wait_ready(2, RESPAWN_S)
    calls: list[Call] = []
    owners: list[int] = []
    while len(set(owners)) < 2:  # the kernel decides who takes a connection
        calls += [service.start(body) for body in BODIES]
        owners = [owner_of(call, service.children("frontend")) for call in calls]
        assert len(calls) < 10 * len(BODIES)
    for call in calls:
        if call.body.get("stream"):
            call.wait_chunks(2)
    victim = owners[0]
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    for call, owner in zip(calls, owners, strict=True):
        assert call.wait().outcome == ("cut" if owner == victim else "finished") or call.ended_at < killed_at
    check_texts(calls, expected * (len(calls) // len(BODIES)))
    cut = [call.ended_at - killed_at for call in calls if call.outcome == "cut"]
    report("F05 connections end", max(cut), ENDED_WITHIN_S)
    service.wait_idle(5)
    wait_for(lambda: len(service.children("frontend")) == 2, RESPAWN_S, "another front end")


@pytest.mark.slow
def test_requests_of_a_killed_front_end_free_their_blocks() -> None:
    with running("--frontend-replicas", "1") as service:
        calls = [service.start(story(index, 900, stream=True)).wait_chunks(2) for index in range(3)]
        killed_at = time.monotonic()
        service.kill("frontend")
        assert [call.wait().outcome for call in calls] == ["cut"] * 3
        service.wait_ready(1, RESPAWN_S)
        seconds = service.wait_idle()
        report("F05 blocks free (once there is a front end to ask)", seconds, ENDED_WITHIN_S)
        assert service.metrics()["request_success_total/abort"] == 3
        assert time.monotonic() - killed_at < RESPAWN_S


def owner_of(call: Call, frontends: Sequence[psutil.Process]) -> int:
    """The pid of the front end that has taken a connection."""
    owner = 0

    def find() -> int:
        nonlocal owner
        for frontend in frontends:
            with suppress(psutil.Error):
                for connection in frontend.net_connections("tcp"):
                    if connection.raddr and connection.raddr.port == call.local_port:
                        owner = frontend.pid
        return owner or int(call.outcome is not None)

    wait_for(find, 10, "an owner of the connection")
    return owner


# F28: killed while suspended


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "is_replaced_first"), [("persist", True), ("offload", True), ("offload", False), ("recompute", False)]
)
def test_an_engine_killed_while_suspended_keeps_nobody_waiting(
    two_replicas: RunningService, mode: str, is_replaced_first: bool
) -> None:
    service = two_replicas
    expected = right_texts(service, BODIES)
    service.wait_ready(2, RESPAWN_S)
    counts = Counts(service)
    calls = start_load(service)
    for verb, body in (("pause", {}), ("suspend", {"kv_mode": mode})):
        assert service.ask("POST", f"/admin/{verb}", body).status == 200
    killed = service.kill("engine")
    if is_replaced_first:
        wait_for(lambda: counts.grown("replica_deaths_total") == 1, 5, "its death")
        wait_for(lambda: num_up(service) == 2, RESPAWN_S, "another engine")
    else:
        # The death may come in the middle of the verb, which the other one then follows all the same.
        assert service.ask("POST", "/admin/resume", {}).status in (200, 503)
    for verb in ("resume", "unpause"):
        assert service.ask("POST", f"/admin/{verb}", {}).status == 200
    check_answers(calls, expected)

    assert {call.outcome for call in calls} == {"finished", "error"}
    service.wait_replaced(killed)
    counts.check(calls)
    assert service.complete_patiently(BODIES[0]).text == expected[0]


# P14, F15: too little cache


@pytest.mark.slow
def test_requests_that_take_each_others_blocks_get_the_same_tokens() -> None:
    bodies = [story(index, 300, stream=index % 2 == 0) for index in range(16)]
    with running() as service:
        expected = right_texts(service, bodies)
    with running("--buffer-size-gb", "0.002") as service:  # about twice what one of them needs
        counts = Counts(service)
        calls = [service.start(body) for body in bodies]
        check_answers(calls, expected)
        assert [call.outcome for call in calls] == ["finished"] * len(calls)
        counts.check(calls)
        assert counts.grown("num_preemptions_total") > 0
        report("P14 F15 preemptions", counts.grown("num_preemptions_total"), 1, "")


# F29: what a killed service leaves


@pytest.mark.slow
def test_children_die_with_the_supervisor_and_the_next_start_clears_its_folder(tmp_path: Path) -> None:
    place = Path("/tmp") / f"kt-stale-{os.getpid()}"
    place.mkdir()
    try:
        environment = {"XDG_RUNTIME_DIR": str(place)}
        with running("--frontend-replicas", "2", num_replicas=2, environment=environment) as service:
            calls = [service.start(body).wait_chunks(2) for body in STREAMS[:2]]
            service.children()
            service.process.kill()
            service.wait()
            seconds = service.wait_for_orphans(10)
            report("children gone after the supervisor's kill -9", seconds, 1.0)
            assert seconds < 1.0 * SLACK
            assert [call.wait().outcome for call in calls] == ["cut", "cut"]
        stale = set(place.iterdir())
        assert len(stale) == 1
        with running(environment=environment) as service:
            assert not stale & set(place.iterdir())
            assert service.complete(story(1, 5)).outcome == "finished"
        assert list(place.iterdir()) == []
    finally:
        with suppress(OSError):
            place.rmdir()
