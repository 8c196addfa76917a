"""The parent of all processes of a service: starts them, restarts what dies, and ends them in order.

One synchronous loop over a selector, not asyncio: it must start in no time, has a handful of descriptors to watch, and
every decision is made at one place, with nothing running beside it. Knows nothing of what its children do.
"""

import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType

from kilotron.coordinator.supervision.child_output import STDERR_FD, OutputLog
from kilotron.coordinator.supervision.child_process import EXIT_USAGE, ChildExit, ChildProcess, ChildSpec
from kilotron.coordinator.supervision.parent_link import ChildStatus
from kilotron.coordinator.supervision.restart_policy import RestartHistory

EXIT_FAILURE = 1
_EXIT_OF_SIGNAL = 128  # plus its number, as a shell says it

_KILL_WAIT_S = 5.0  # for the kernel to take away what was killed


class SupervisorEvents:
    """What a supervisor tells while it runs. Override what you want to hear; nothing here may wait."""

    def on_status(self, name: str, status: ChildStatus) -> None:
        """A child reported something, readiness included."""

    def on_ready(self, name: str) -> None:
        """A child does its work from now on."""

    def on_exit(self, name: str, why: str) -> None:
        """A child ended; `why` is a clause such as "was killed by SIGKILL"."""

    def on_restart(self, name: str, delay_s: float) -> None:
        """A child that ended will be started again after so many seconds."""


@dataclass(frozen=True, kw_only=True)
class SupervisionEnd:
    """Why a supervisor returned."""

    exit_code: int  # 0 drained, 1 a child failed too often, 2 a child refused its configuration, 130/143 killed
    error: str = ""  # a sentence for the user, empty if all went well


class _Child:
    """One child through all its incarnations."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.history = RestartHistory(spec.restart)
        self.process: ChildProcess | None = None
        self.restart_at: float | None = None  # on the monotonic clock
        self.was_asked_to_end = False


@dataclass
class _Stop:
    """How the end is going."""

    exit_code: int
    error: str
    deadline: float
    signal_number: int | None = None  # that asked for it
    stage: int | None = None  # which children were asked to end last
    is_killing: bool = False


class Supervisor:
    """Runs the children that `specs` describe until it is told to stop, or one of them cannot be kept alive.

    SIGTERM and SIGINT drain: children of the lowest stage are asked to end and have `drain_timeout_s` for what they are
    at; the stages after them have `stop_timeout_s` together. A second signal kills. SIGHUP and SIGPIPE do nothing. If
    this process is killed, the kernel kills the children with it.

    Example:
        >>> Supervisor([]).run()
        SupervisionEnd(exit_code=0, error='')
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        events: SupervisorEvents | None = None,
        *,
        drain_timeout_s: float = 30.0,
        stop_timeout_s: float = 1.5,
        output_fd: int = STDERR_FD,
    ) -> None:
        """Starts nothing yet.

        Args:
            specs: The children; they are started in this order, without waiting for each other.
            events: Whom to tell.
            drain_timeout_s: How long the children that are asked first may take to end.
            stop_timeout_s: How long all others may take after that.
            output_fd: Where the children's output goes.
        """
        _occupy_standard_streams()
        self._children = [_Child(spec) for spec in specs]
        self._events = events or SupervisorEvents()
        self._drain_timeout_s = drain_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._log = OutputLog(output_fd)
        self._selector = selectors.DefaultSelector()
        self._requests: deque[int | None] = deque()  # numbers of signals; None for a call of `stop`
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._stop: _Stop | None = None

    def stop(self) -> None:
        """Does what SIGTERM does; from any thread, and a second time as well. Returns at once."""
        self._requests.append(None)
        with suppress(OSError):  # it has run, or so much is waiting there that it will wake up anyway
            self._wake_sender.send(b"\0")

    def run(self) -> SupervisionEnd:
        """Starts the children and returns when all are gone; once only.

        Call it in the main thread to have signals handled, or in a thread that does nothing else.
        """
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._on_wake)
        try:
            with self._handling_signals():
                for child in self._children:
                    self._start(child)
                while not self._is_over():
                    for key, _ in self._selector.select(self._seconds_to_deadline()):
                        key.data()
                    self._answer_requests()
                    self._keep_time(time.monotonic())
        finally:
            self._kill_everything()
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()
        stop = self._stop or _Stop(0, "", 0.0)
        return SupervisionEnd(exit_code=stop.exit_code, error=stop.error)

    def _is_over(self) -> bool:
        return all(child.process is None and child.restart_at is None for child in self._children)

    def _seconds_to_deadline(self) -> float | None:
        deadlines = [child.restart_at for child in self._children if child.restart_at is not None]
        if self._stop is not None:
            deadlines.append(self._stop.deadline)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _keep_time(self, now: float) -> None:
        for child in self._children:
            if child.restart_at is not None and now >= child.restart_at:
                self._start(child)
        if self._stop is not None and now >= self._stop.deadline:
            self._on_stop_timeout(self._stop, now)

    # What happens to children

    def _start(self, child: _Child) -> None:
        child.restart_at = None
        if self._stop is not None:
            return
        try:
            process = child.process = ChildProcess(child.spec)
        except OSError as error:
            failure = ChildExit(exit_code=EXIT_FAILURE, was_ready=False, error=str(error), last_lines=())
            self._on_end(child, failure)
            return
        self._watch(process.pidfd, partial(self._on_death, child, process))
        self._watch(process.output.fd, partial(self._on_output, child, process))
        self._watch(process.status.fd, partial(self._on_status, child, process))

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _unwatch(self, fd: int) -> None:
        if fd in self._selector.get_map():  # not if the child closed it long ago
            self._selector.unregister(fd)

    def _on_output(self, child: _Child, process: ChildProcess) -> None:
        if process is not child.process:  # it ended in this same round, and its descriptors with it
            return
        for line in process.read_output():
            self._log.write(child.spec.name, line)
        if process.output.is_at_end:
            self._unwatch(process.output.fd)

    def _on_status(self, child: _Child, process: ChildProcess) -> None:
        if process is not child.process:
            return
        for status in process.read_statuses():
            self._events.on_status(child.spec.name, status)
            if status.state == "ready":
                self._events.on_ready(child.spec.name)
        if process.status.is_at_end:
            self._unwatch(process.status.fd)

    def _on_death(self, child: _Child, process: ChildProcess) -> None:
        self._on_status(child, process)
        for line in process.read_last_output():
            self._log.write(child.spec.name, line)
        for fd in (process.pidfd, process.output.fd, process.status.fd):
            self._unwatch(fd)
        child.process = None
        self._on_end(child, process.reap())

    def _on_end(self, child: _Child, end: ChildExit) -> None:
        name = child.spec.name
        self._events.on_exit(name, end.reason)
        if self._stop is not None:
            self._on_end_while_stopping(self._stop, child, end)
        elif end.is_usage_error:
            self._begin_stop(EXIT_USAGE, end.error or f"{child.spec.title} {end.reason}")
        else:
            now = time.monotonic()
            delay_s = child.history.next_delay_s(was_ready=end.was_ready, now=now)
            if delay_s is None:
                self._begin_stop(EXIT_FAILURE, f"{child.spec.title} failed too often; the last time it {end.reason}")
            else:
                child.restart_at = now + delay_s
                self._events.on_restart(name, delay_s)

    def _on_end_while_stopping(self, stop: _Stop, child: _Child, end: ChildExit) -> None:
        is_expected = child.was_asked_to_end and end.is_clean
        if not is_expected and not stop.is_killing and stop.exit_code == 0:
            stop.exit_code = EXIT_FAILURE
            stop.error = f"{child.spec.title} {end.reason}, while everything was being stopped"
        self._ask_next_stage(stop)

    # How it ends

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            self._wake_receiver.recv(4096)

    def _answer_requests(self) -> None:
        while self._requests:
            number = self._requests.popleft()
            if self._stop is None:
                self._begin_stop(0, "", number)
            else:
                self._kill_now(self._stop, number)

    def _begin_stop(self, exit_code: int, error: str, signal_number: int | None = None) -> None:
        deadline = time.monotonic() + self._drain_timeout_s
        self._stop = _Stop(exit_code, error, deadline, signal_number)
        for child in self._children:
            child.restart_at = None
        self._ask_next_stage(self._stop)

    def _ask_next_stage(self, stop: _Stop) -> None:
        stages = [child.spec.drain_stage for child in self._children if child.process is not None]
        if not stages or stop.is_killing or stop.stage == min(stages):
            return
        if stop.stage is not None:  # requests are done with: from here on it goes fast
            stop.deadline = min(stop.deadline, time.monotonic() + self._stop_timeout_s)
        stop.stage = min(stages)
        for child in self._children:
            if child.process is not None and child.spec.drain_stage == stop.stage:
                child.was_asked_to_end = True
                child.process.ask_to_end()

    def _on_stop_timeout(self, stop: _Stop, now: float) -> None:
        first_stage = min(child.spec.drain_stage for child in self._children)
        if stop.stage == first_stage:  # it had work left, so this is no clean end
            self._kill_now(stop, stop.signal_number)
        else:
            self._kill_all(stop)
        stop.deadline = now + _KILL_WAIT_S

    def _kill_now(self, stop: _Stop, signal_number: int | None) -> None:
        if stop.exit_code == 0:
            stop.exit_code = _EXIT_OF_SIGNAL + signal_number if signal_number else EXIT_FAILURE
            stop.error = "the processes were killed before they had finished their requests"
        self._kill_all(stop)

    def _kill_all(self, stop: _Stop) -> None:
        stop.is_killing = True
        for child in self._children:
            if child.process is not None:
                child.process.kill()

    def _kill_everything(self) -> None:
        """Whatever went wrong here, nothing is left behind."""
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.reap()
                child.process = None

    # Signals

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # The descriptor is written to when a signal comes, even between our last look and the wait.
        wakeup_before = signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        before |= {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGPIPE)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requests.append(number)


def _occupy_standard_streams() -> None:
    """If stdout or stderr came closed, a pipe to a child must not get its number and be written to by mistake."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= STDERR_FD:
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)
