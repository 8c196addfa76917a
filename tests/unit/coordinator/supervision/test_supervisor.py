import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kilotron.coordinator.supervision.child_process import ChildSpec
from kilotron.coordinator.supervision.restart_policy import RestartHistory, RestartPolicy
from kilotron.coordinator.supervision.supervisor import SupervisionEnd, Supervisor
from unit.coordinator.supervision.supervised import (
    DEAF,
    FAST,
    PRELUDE,
    WAITING,
    Recorder,
    child,
    is_alive,
    run,
    wait_for_end,
)

SOURCES = Path(__file__).parents[4] / "src"
TESTS = Path(__file__).parents[3]


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_supervisor_of_nothing_ends_cleanly() -> None:
    assert run([]) == SupervisionEnd(exit_code=0)


def test_a_killed_child_is_restarted_and_the_others_notice_nothing() -> None:
    recorder = Recorder()
    supervisor = Supervisor([child("a", WAITING), child("b", WAITING)], recorder)
    ready: set[str] = set()

    def kill_when_both_are_ready(name: str) -> None:
        ready.add(name)
        if len(ready) == 2:
            os.kill(recorder.pids["a"][0], signal.SIGKILL)

    recorder.reactions = {
        "a ready": lambda: kill_when_both_are_ready("a"),
        "b ready": lambda: kill_when_both_are_ready("b"),
        "a ready #2": supervisor.stop,
    }

    assert supervisor.run() == SupervisionEnd(exit_code=0)
    assert recorder.events.count("a ready") == 2
    assert recorder.events.count("b ready") == 1
    assert recorder.reasons[0] == "was killed by SIGKILL"


def test_no_zombie_is_left_by_a_death() -> None:
    recorder = Recorder()
    supervisor = Supervisor([child("a", WAITING)], recorder)
    alive = []

    def look_and_stop() -> None:
        alive.append(is_alive(recorder.pids["a"][0]))  # a zombie would count
        supervisor.stop()

    recorder.reactions = {
        "a ready": lambda: os.kill(recorder.pids["a"][0], signal.SIGKILL),
        "a ready #2": look_and_stop,
    }
    supervisor.run()

    assert alive == [False]
    assert not is_alive(recorder.pids["a"][1])


def test_a_child_that_never_gets_ready_is_tried_three_times() -> None:
    recorder = Recorder()

    end = run([child("a", "print('out of luck', file=sys.stderr); sys.exit(3)"), child("b", WAITING)], recorder)

    assert end.exit_code == 1
    assert (
        end.error
        == "the process a failed too often; the last time it exited with code 3 before it was ready: out of luck"
    )
    assert recorder.events.count("a ended") == 3
    assert recorder.events.count("b ended") == 1  # stopped with it


def test_a_child_that_keeps_dying_after_it_was_ready_is_restarted_three_times() -> None:
    recorder = Recorder()

    end = run([child("a", "ready(); sys.exit(0)")], recorder)

    assert end == SupervisionEnd(
        exit_code=1, error="the process a failed too often; the last time it exited with code 0"
    )  # an end that nobody asked for is a failure, whatever its code
    assert recorder.events.count("a restarts") == 3


def test_restarts_are_forgotten_after_the_window_and_failed_starts_are_not() -> None:
    lively, broken = RestartHistory(RestartPolicy()), RestartHistory(RestartPolicy())

    assert [lively.next_delay_s(was_ready=True, now=now) for now in (0, 1, 2, 3)] == [0.5, 1.0, 2.0, None]
    assert lively.next_delay_s(was_ready=True, now=61.5) == 1.0  # the one of second 2 still counts
    assert [broken.next_delay_s(was_ready=False, now=now) for now in (0, 100, 200)] == [0.5, 0.5, None]


def test_a_wrong_configuration_is_told_and_not_tried_again() -> None:
    recorder = Recorder()
    message = "no such option: --speed"

    end = run([child("a", f"say('failed', exit_code=2, message={message!r}); sys.exit(2)")], recorder)

    assert end == SupervisionEnd(exit_code=2, error=message)
    assert recorder.events == ["a ended"]


def test_a_program_that_does_not_exist_is_a_failed_start() -> None:
    end = run([ChildSpec(name="a", argv=("/no/such/program",), restart=FAST)])

    assert end.exit_code == 1
    assert "No such file" in end.error


def test_sigterm_asks_the_stages_one_after_the_other() -> None:
    recorder = Recorder()
    front = (
        "on_term(lambda: say('loading', phase='asked')); signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0)); "
        "ready(); wait()"
    )
    engine = "on_term(lambda: (say('loading', phase='asked'), sys.exit(0))); ready(); wait()"
    recorder.reactions = {
        "engine ready": lambda: os.kill(recorder.pids["front"][0], 0) or signal_self(signal.SIGTERM),
        "front asked": lambda: os.kill(recorder.pids["front"][0], signal.SIGUSR1),
    }
    # The engine starts slower, so that both are ready when it is.
    specs = [child("engine", "import time; time.sleep(0.2); " + engine, drain_stage=1), child("front", front)]

    end = run(specs, recorder)

    assert end == SupervisionEnd(exit_code=0)
    assert recorder.events[-4:] == ["front asked", "front ended", "engine asked", "engine ended"]


def test_requests_that_outlast_the_drain_are_killed_and_that_is_told() -> None:
    recorder = Recorder()
    recorder.reactions = {"front ready": lambda: signal_self(signal.SIGTERM)}

    end = run([child("front", DEAF)], recorder, drain_timeout_s=0.2)

    assert end.exit_code == 143
    assert recorder.reasons == ["was killed by SIGKILL"]


def test_an_engine_without_requests_that_does_not_end_is_killed_soon() -> None:
    recorder = Recorder()
    recorder.reactions = {"engine ready": lambda: signal_self(signal.SIGTERM)}

    # "front" ends by SIGTERM's default; nothing was lost, so the end is clean.
    specs = [child("front", "wait()"), child("engine", DEAF, drain_stage=1)]
    end = run(specs, recorder, stop_timeout_s=0.1)

    assert end == SupervisionEnd(exit_code=0)
    assert recorder.events[-2:] == ["engine asked", "engine ended"]


@pytest.mark.timeout(20)
def test_a_signal_is_seen_while_nothing_else_happens() -> None:
    recorder = Recorder()
    body = "signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getppid(), signal.SIGTERM)); ready(); wait()"
    recorder.reactions = {"a ready": lambda: os.kill(recorder.pids["a"][0], signal.SIGUSR1)}

    assert run([child("a", body)], recorder) == SupervisionEnd(exit_code=0)


def test_a_second_signal_kills() -> None:
    recorder = Recorder()
    recorder.reactions = {
        "a ready": lambda: signal_self(signal.SIGTERM),
        "a asked": lambda: signal_self(signal.SIGINT),
    }

    end = run([child("a", DEAF)], recorder)

    assert end.exit_code == 130
    assert recorder.reasons == ["was killed by SIGKILL"]


def test_a_child_that_crashes_during_the_drain_is_not_restarted_and_not_hidden() -> None:
    recorder = Recorder()
    recorder.reactions = {"a ready": lambda: signal_self(signal.SIGTERM)}

    end = run([child("a", "on_term(lambda: os.abort()); ready(); wait()")], recorder)

    assert end.exit_code == 1
    assert "was killed by SIGABRT" in end.error
    assert recorder.events == ["a ready", "a ended"]


def test_hangup_and_broken_pipes_do_nothing() -> None:
    recorder = Recorder()
    supervisor = Supervisor([child("a", WAITING)], recorder)

    def annoy() -> None:
        signal_self(signal.SIGHUP)
        signal_self(signal.SIGPIPE)
        os.kill(recorder.pids["a"][0], signal.SIGHUP)  # children inherit that
        supervisor.stop()

    recorder.reactions = {"a ready": annoy}

    assert supervisor.run() == SupervisionEnd(exit_code=0)
    assert recorder.reasons == ["was killed by SIGTERM"]


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    run([])

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_a_supervisor_in_a_thread_is_stopped_from_another() -> None:
    recorder = Recorder()
    ready = threading.Event()
    recorder.reactions = {"a ready": ready.set}
    supervisor = Supervisor([child("a", WAITING)], recorder)
    ends: list[SupervisionEnd] = []
    thread = threading.Thread(target=lambda: ends.append(supervisor.run()))
    thread.start()
    assert ready.wait(5)
    supervisor.stop()
    thread.join(5)
    supervisor.stop()  # too late is no error

    assert ends == [SupervisionEnd(exit_code=0)]


def test_an_event_handler_that_fails_leaves_no_process() -> None:
    recorder = Recorder()

    def fail() -> None:
        raise LookupError("a fault of ours")

    recorder.reactions = {"a ready": fail}

    with pytest.raises(LookupError):
        run([child("a", WAITING)], recorder)
    assert not is_alive(recorder.pids["a"][0])


def test_what_a_child_started_dies_with_it() -> None:
    recorder = Recorder()
    body = """
import subprocess
grandchild = subprocess.Popen(["sleep", "60"])
say("ready", details={"pid": os.getpid()}); say("ready", details={"pid": grandchild.pid}); wait()
"""
    supervisor = Supervisor([child("a", body)], recorder)
    recorder.reactions = {
        "a ready #2": lambda: os.kill(recorder.pids["a"][0], signal.SIGKILL),
        "a ended": supervisor.stop,
    }
    supervisor.run()

    assert wait_for_end(recorder.pids["a"][1])


def test_output_carries_the_childs_name() -> None:
    reader, writer = os.pipe()
    run([child("a", "print('one'); print('two', end=''); sys.stdout.flush(); sys.exit(2)")], output_fd=writer)
    os.close(writer)
    with open(reader) as lines:
        assert lines.read() == "[a] one\n[a] two\n"


def test_output_that_nobody_reads_stops_nobody() -> None:
    reader, writer = os.pipe()
    recorder = Recorder()
    supervisor = Supervisor(
        [child("a", "print('x' * 5000, flush=True)\nfor i in range(3000): print('y' * 99)\nready(); wait()")],
        recorder,
        output_fd=writer,
    )
    recorder.reactions = {"a ready": supervisor.stop}
    end = supervisor.run()
    os.close(writer)
    with open(reader) as lines:
        first = lines.readline()

    assert end == SupervisionEnd(exit_code=0)
    assert len(first) == 4096


def test_output_to_a_reader_who_left_stops_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    end = run([child("a", "print('hello'); sys.exit(2)")], output_fd=writer)
    os.close(writer)

    assert end == SupervisionEnd(exit_code=2, error="hello")


def test_a_child_that_closes_its_streams_is_still_watched() -> None:
    recorder = Recorder()
    supervisor = Supervisor([child("a", "ready(); [os.close(fd) for fd in (1, 2, FD)]; wait()")], recorder)
    timer = threading.Timer(0.5, supervisor.stop)
    recorder.reactions = {"a ready": timer.start}
    before_s = time.thread_time()
    supervisor.run()

    assert time.thread_time() - before_s < 0.1  # it does not spin


def test_garbage_on_the_status_pipe_is_ignored() -> None:
    recorder = Recorder()
    supervisor = Supervisor(
        [child("a", r"os.write(FD, b'\xff{\n[1]\n{}\n{\"state\":\"odd\"}\n' + b'[' * 99999 + b'\n'); ready(); wait()")],
        recorder,
    )
    recorder.reactions = {"a ready": supervisor.stop}

    assert supervisor.run() == SupervisionEnd(exit_code=0)
    assert [status.state for status in recorder.statuses] == ["ready"]


LINKED = """
import os, sys
from kilotron.coordinator.supervision.parent_link import ParentLink
link = ParentLink.connect()
assert sys.stdin.read() == "" and "KILOTRON_CHILD_PARENT_PID" not in os.environ
link.report_phase("loading weights", 0.5)
config = link.config.decode()
link.report_ready(config=config.strip(), length=len(config), environment=os.environ["GREETING"], umask=os.umask(0))
print(os.fstat({fd}).st_ino)
link.report_failed(2, "enough")
sys.exit(2)
"""


def test_a_child_gets_its_configuration_and_its_sockets() -> None:
    recorder = Recorder()
    inherited, other_end = os.pipe()
    spec = ChildSpec(
        name="a",
        argv=(sys.executable, "-c", LINKED.format(fd=inherited)),
        environment={"PYTHONPATH": str(SOURCES), "GREETING": "hello"},
        config=b'{"key": "secret"}' + b" " * 200_000,
        inherited_fds=(inherited,),
    )
    end = run([spec], recorder)
    os.close(inherited)
    os.close(other_end)
    loading, ready, failed = recorder.statuses

    assert end == SupervisionEnd(exit_code=2, error="enough")
    assert (loading.phase, loading.progress) == ("loading weights", 0.5)
    assert ready.details == {"config": '{"key": "secret"}', "length": 200_017, "environment": "hello", "umask": 0o077}
    assert (failed.exit_code, failed.message) == (2, "enough")
    assert "secret" not in repr(spec)


SUPERVISING = """
import os, sys
sys.path[:0] = [{sources!r}, {tests!r}]
from kilotron.coordinator.supervision.child_process import ChildSpec
from kilotron.coordinator.supervision.supervisor import Supervisor
from unit.coordinator.supervision.supervised import Recorder, WAITING, child
{body}
"""


def start_supervisor(body: str, **streams: int) -> "subprocess.Popen[str]":
    text = SUPERVISING.format(sources=str(SOURCES), tests=str(TESTS), body=body)
    return subprocess.Popen([sys.executable, "-c", text], text=True, **streams)  # type: ignore[call-overload, no-any-return]


def test_children_and_their_children_die_with_a_killed_supervisor() -> None:
    body = """
linked = '''
import os, subprocess, sys
from kilotron.coordinator.supervision.parent_link import ParentLink
link = ParentLink.connect()
dying = "import sys; from kilotron.coordinator.supervision.parent_death import die_with_parent; "
dying += f"die_with_parent({os.getpid()}); print(flush=True); sys.stdin.read()"
grandchild = subprocess.Popen([sys.executable, "-c", dying], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
grandchild.stdout.readline()
link.report_ready(pid=os.getpid())
link.report_ready(pid=grandchild.pid)
sys.stdin.read() or __import__("signal").pause()
'''
recorder = Recorder()
recorder.reactions = {"a ready #2": lambda: print(*recorder.pids["a"], flush=True)}
spec = ChildSpec(name="a", argv=(sys.executable, "-c", linked), environment={"PYTHONPATH": sys.path[0]})
Supervisor([spec], recorder).run()
"""
    with start_supervisor(body, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()

    assert len(pids) == 2
    assert all(wait_for_end(pid, 2.0) for pid in pids)


def test_a_child_whose_parent_is_already_gone_ends_at_once() -> None:
    code = "from kilotron.coordinator.supervision.parent_death import die_with_parent; die_with_parent(1 << 22)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCES)}, check=False)

    assert done.returncode == -signal.SIGKILL


def test_closed_streams_do_not_stop_a_supervisor(tmp_path: Path) -> None:
    result = tmp_path / "result"
    body = f"""
recorder = Recorder()
for fd in (0, 1, 2): os.close(fd)
supervisor = Supervisor([child("a", "print('hello', flush=True); print('bye', flush=True); ready(); wait()")], recorder)
recorder.reactions = {{"a ready": supervisor.stop}}
end = supervisor.run()
open({str(result)!r}, "w").write(f"{{end.exit_code}} {{recorder.reasons}} {{os.readlink('/proc/self/fd/2')}}")
os._exit(0)
"""
    assert start_supervisor(body).wait(20) == 0
    assert result.read_text() == "0 ['was killed by SIGTERM: bye'] /dev/null"


def test_a_supervisor_imports_neither_torch_nor_asyncio() -> None:
    package = "kilotron.coordinator.supervision"
    code = f"import sys, {package}.supervisor, {package}.run_folder; print(*sys.modules)"
    environment = {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert not {"torch", "asyncio", "zmq"} & set(done.stdout.split())


def test_the_prelude_of_these_tests_is_python() -> None:
    compile(PRELUDE, "prelude", "exec")
