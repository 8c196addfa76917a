"""How `kilotron serve` starts badly, and how it ends: exit codes, one clear line, and nothing left behind (P05, P06,
P09, P29; F07, F20, F21, F29)."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.generations import right_texts, story
from service.running_service import SOURCE, RunningService, report, running, starting, wait_for

STARTUP_FAILURE_S = 5.0
SLACK = 3.0
STREAMS = [story(index, 800, stream=True) for index in range(4)]
# More than can be done in a second.
ENDLESS = [story(index, 900, stream=True, n=16) for index in range(4)]


def check_failure(service: RunningService, code: int, *words: str) -> None:
    """One line says what is wrong; nothing stays."""
    started = time.monotonic()
    assert service.wait() == code, service.log
    seconds = time.monotonic() - started
    lines = service.log.splitlines()
    errors = [line for line in lines if line.startswith("kilotron: error: ")]
    assert len(errors) == 1, service.log
    assert lines[-1] == errors[0]
    assert all(word in errors[0] for word in words), errors[0]
    assert "Traceback" not in service.log
    assert service.process.stdout is not None
    assert service.process.stdout.read() == b""
    service.check_nothing_is_left()
    report(f"P06 exit {code}: {words[0]}", seconds, STARTUP_FAILURE_S)
    assert seconds < STARTUP_FAILURE_S * SLACK


# P06, P29: startup failures


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prot", "1"), ("--port",)),
        (("--step-timeout-s", "-1"), ("step_timeout_s",)),
        (("--host", "0.0.0.0"), ("0.0.0.0", "KILOTRON_API_KEY")),
        (("--host", "::"), ("::", "KILOTRON_API_KEY")),
        (("--api-key-file", "/no/such/file"), ("/no/such/file",)),
        (("./no-such-model",), ("no-such-model",)),
    ],
)
def test_a_mistake_in_the_command_line_is_told_at_once(options: tuple[str, ...], words: tuple[str, ...]) -> None:
    with starting(*options) as service:
        check_failure(service, 2, *words)


def test_an_empty_key_is_no_key() -> None:
    with starting(environment={"KILOTRON_API_KEY": ""}) as service:
        check_failure(service, 2, "KILOTRON_API_KEY")


def test_a_port_that_is_taken_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with starting(port=port) as service:
            check_failure(service, 2, str(port), "--port")


@pytest.mark.slow
def test_a_broken_checkpoint_ends_the_start_and_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with starting(str(tmp_path)) as service:
        check_failure(service, 2, "model.safetensors")
        assert "starts again" not in service.log


@pytest.mark.slow
def test_an_engine_that_cannot_start_is_tried_three_times(tmp_path: Path) -> None:
    """F07: what fails is no mistake of the user, so it might work the next time."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('no device today')\n")
    with starting(environment={"PYTHONPATH": f"{tmp_path}:{SOURCE}"}) as service:
        wait_for(lambda: service.ask("GET", "/health").status == 200)
        assert service.ask("GET", "/ready").status == 503
        assert service.wait() == 1
        assert "no device today" in service.log.splitlines()[-1]
        assert service.log.count("starts again") == 2
        service.check_nothing_is_left()


# P05, F20: signals


@pytest.fixture
def service() -> Iterator[RunningService]:
    with running("--frontend-replicas", "2") as service:
        yield service


@pytest.mark.slow
def test_sigterm_lets_running_requests_finish_and_takes_no_new_ones(service: RunningService) -> None:
    expected = right_texts(service, STREAMS)
    calls = [service.start(body).wait_chunks(5) for body in STREAMS]
    terminated_at = time.monotonic()
    service.terminate()

    wait_for(lambda: service.ask("GET", "/ready").status == 503, what="not ready")
    report("P05 not ready", time.monotonic() - terminated_at, 0.1)
    assert any(call.outcome is None for call in calls)
    refused = service.complete(story(1, 5))
    assert (refused.status, refused.error["code"]) == (503, "shutting_down")
    assert refused.response_headers["connection"] == "close"
    assert int(refused.response_headers["retry-after"]) > 0

    assert [call.wait().text for call in calls] == expected
    last_end = max(call.ended_at for call in calls)
    assert service.wait() == 0
    report("P05 gone after the last answer", time.monotonic() - last_end, 2.0)
    assert time.monotonic() - last_end < 2.0 * SLACK
    service.check_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_that_outlast_the_drain_end_with_an_error(number: int) -> None:
    with running("--drain-timeout-s", "4") as service:
        calls = [service.start(body).wait_chunks(5) for body in ENDLESS]
        service.terminate(number)
        terminated_at = time.monotonic()
        outcomes = [(call.wait().outcome, call.error.get("code")) for call in calls]
        assert service.wait() == 0, service.log
        report("P05 drain of 4 s", time.monotonic() - terminated_at, 4.0)
        assert outcomes == [("error", "service_unavailable")] * len(calls)
        service.check_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_everything_now(service: RunningService, number: int, code: int) -> None:
    calls = [service.start(body).wait_chunks(5) for body in ENDLESS]
    service.terminate(number)
    wait_for(lambda: service.ask("GET", "/ready").status == 503)
    again_at = time.monotonic()
    service.terminate(number)

    assert service.wait() == code
    report("P05 second signal", time.monotonic() - again_at, 1.0)
    assert [call.wait().outcome for call in calls] == ["cut"] * len(calls)
    service.check_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5])
def test_sigterm_while_loading_is_a_clean_end(after_s: float) -> None:
    with starting("--frontend-replicas", "2") as service:
        assert service.port
        time.sleep(after_s)
        service.terminate()
        terminated_at = time.monotonic()
        assert service.wait() == 0, service.log
        report("P05 while loading", time.monotonic() - terminated_at, 2.0)
        assert "Traceback" not in service.log
        service.check_nothing_is_left()


# F21: other signals, closed streams


@pytest.mark.slow
def test_hangups_and_closed_streams_change_nothing() -> None:
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    try:
        with running(port=port, stderr=writer) as service:
            expected = right_texts(service, STREAMS)
            calls = [service.start(body).wait_chunks(5) for body in STREAMS]
            os.close(reader)  # nobody reads its log any more
            reader = -1
            assert service.process.stdin is not None
            assert service.process.stdout is not None
            service.process.stdin.close()
            service.process.stdout.close()
            pids = {child.pid for child in service.children()}
            for pid in (service.process.pid, *pids):
                for number in (signal.SIGHUP, signal.SIGPIPE):
                    os.kill(pid, number)
            assert [call.wait().text for call in calls] == expected
            # Something that is logged: a stranger's abort of nothing, an unknown path, a death.
            service.kill("engine")
            service.wait_ready(1, 30)
            assert pids - {child.pid for child in service.children()} != pids
    finally:
        for fd in (reader, writer):
            with suppress(OSError):
                os.close(fd)
