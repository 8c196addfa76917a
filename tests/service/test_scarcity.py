"""What a running service does when the machine is short of something, or lies: descriptors, asserts, the wall
clock (F18, F22, F30)."""

import re
import socket
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from service.generations import right_texts, story
from service.running_service import report, running, wait_for

STREAMS = [story(index, 500, stream=True) for index in range(3)]


@pytest.mark.slow
def test_without_descriptors_streams_go_on_and_newcomers_come_in_later() -> None:
    with running() as service:
        expected = right_texts(service, STREAMS)
        calls = [service.start(body).wait_chunks(2) for body in STREAMS]
        frontend = psutil.Process(service.children("frontend")[0].pid)
        before = frontend.rlimit(psutil.RLIMIT_NOFILE)
        frontend.rlimit(psutil.RLIMIT_NOFILE, (frontend.num_fds() + 4, before[1]))
        with ExitStack() as stack:
            for _ in range(32):
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            assert [call.wait().text for call in calls] == expected
        report("F18 served again", wait_for(service.is_ready, 10), 2.0)
        frontend.rlimit(psutil.RLIMIT_NOFILE, before)
        assert service.complete(story(1, 5)).outcome == "finished"


def test_while_it_serves_nothing_is_written_to_a_disk() -> None:
    """P17: one that is full can then harm no request."""
    with running() as service:
        service.complete(story(0, 5))

        def num_bytes_written() -> int:
            return sum(psutil.Process(child.pid).io_counters().write_bytes for child in service.children())

        before = num_bytes_written()
        for index in range(20):
            assert service.complete(story(index, 5, stream=index % 2 == 0)).outcome == "finished"
        assert num_bytes_written() == before


@pytest.mark.slow
def test_no_check_is_an_assert() -> None:
    with running(environment={"PYTHONOPTIMIZE": "1"}) as service:
        for fields in ({"max_tokens": -1}, {"temperature": 9}, {"n": 1_000_000}, {"prompt": [-1]}, {"stop": [""]}):
            answer = service.ask("POST", "/v1/completions", {**story(1, 5), **fields})
            assert answer.status == 400, fields
        assert service.complete(STREAMS[0]).outcome == "finished"


def test_the_wall_clock_is_read_for_time_stamps_only() -> None:
    """P19: a clock that jumps can then end nothing."""
    source = Path(__file__).parents[2] / "src" / "kilotron"
    readers = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if re.search(r"time\.time(_ns)?\(|datetime\.now|utcnow", path.read_text(encoding="utf-8"))
    }

    assert readers == {
        "text_generation_server/chat_completions.py",
        "text_generation_server/completions.py",
        "text_generation_server/server_state.py",
        "tokenization/template_sandbox.py",
    }
