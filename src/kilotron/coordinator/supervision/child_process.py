"""One child process: how it is started, what it says, and how it ended. Decides nothing about it."""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from kilotron.coordinator.supervision.child_output import LinePipe
from kilotron.coordinator.supervision.parent_link import (
    MAX_STATUS_BYTES,
    PARENT_PID_VARIABLE,
    STATUS_FD_VARIABLE,
    ChildStatus,
)
from kilotron.coordinator.supervision.restart_policy import RestartPolicy

EXIT_USAGE = 2

_MAX_LINE_BYTES = 4096
_NUM_LAST_LINES = 40
_PRIVATE_UMASK = 0o077  # sockets and files that children make are nobody else's
# How a process ends that does what SIGTERM asks: by hand, by default, or as a shell would say it.
_CLEAN_ENDS = {0, -signal.SIGTERM, 128 + signal.SIGTERM}


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What a child is, through all its restarts."""

    name: str  # in logs and events, such as "engine-0"
    argv: tuple[str, ...]  # never a secret: every user of the machine can read it
    role: str = "process"  # for people, such as "HTTP front end"
    environment: Mapping[str, str] = field(default_factory=dict)  # added to ours
    config: bytes = field(default=b"", repr=False)  # JSON that the child reads from stdin; secrets go here
    inherited_fds: tuple[int, ...] = ()  # such as the listening socket; they keep their numbers
    drain_stage: int = 0  # the lowest stage is asked to end first, the next one when that is gone
    restart: RestartPolicy = field(default_factory=RestartPolicy)

    @property
    def title(self) -> str:
        """How it is called in a sentence."""
        return f"the {self.role} {self.name}"


@dataclass(frozen=True, kw_only=True)
class ChildExit:
    """How an incarnation of a child ended."""

    exit_code: int  # negative: the signal that killed it
    was_ready: bool
    error: str  # what the child said about it: its own message, or the last line it wrote
    last_lines: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether a child that was asked to end did just that."""
        return self.exit_code in _CLEAN_ENDS

    @property
    def is_usage_error(self) -> bool:
        """Whether starting it again cannot help."""
        return self.exit_code == EXIT_USAGE

    @property
    def reason(self) -> str:
        """A clause for people, such as "was killed by SIGKILL"."""
        how = f"exited with code {self.exit_code}"
        if self.exit_code < 0:
            known = {number.value: number.name for number in signal.Signals}
            how = f"was killed by {known.get(-self.exit_code, f'signal {-self.exit_code}')}"
        when = "" if self.was_ready else " before it was ready"
        return f"{how}{when}: {self.error}" if self.error else how + when


class ChildProcess:
    """A running incarnation of a `ChildSpec`.

    It has a process group of its own, so that Ctrl-C at a terminal reaches the supervisor only, and so that what the
    child itself started can be killed with it.
    """

    def __init__(self, spec: ChildSpec) -> None:
        """Starts the process; must be called in the thread that will outlive it, see `die_with_parent`.

        Raises:
            OSError: it cannot be started.
        """
        self.is_ready = False
        self._failure = ""
        self._last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        config_fd = _memory_file(spec.config)
        output_fd, output_end = os.pipe()
        status_fd, status_end = os.pipe()
        self.output = LinePipe(output_fd, _MAX_LINE_BYTES)
        self.status = LinePipe(status_fd, MAX_STATUS_BYTES)
        try:
            self._process = _start(spec, config_fd, output_end, status_end)
            # Nobody but us reaps it, so its pid is its own until then.
            self.pidfd = _open_pidfd(self._process)
        except OSError:
            self.output.close()
            self.status.close()
            raise
        finally:
            for fd in (config_fd, output_end, status_end):
                os.close(fd)

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its group."""
        return self._process.pid

    def read_output(self) -> list[str]:
        """The whole lines that it wrote since the last call."""
        return self._keep(self.output.read_lines())

    def read_last_output(self) -> list[str]:
        """What is left when it has ended."""
        return self._keep(self.output.read_last_lines())

    def read_statuses(self) -> list[ChildStatus]:
        """What it reported since the last call; what is not a status is left out."""
        statuses = []
        for line in self.status.read_lines():
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                statuses.append(msgspec.json.decode(line, type=ChildStatus))
        for status in statuses:
            self.is_ready |= status.state == "ready"
            self._failure = status.message if status.state == "failed" else self._failure
        return statuses

    def ask_to_end(self) -> None:
        """Sends SIGTERM to it alone; what it started is its own business."""
        with suppress(ProcessLookupError):  # not Popen's way, which reaps a process that has just ended
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """Kills it and what is left of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> ChildExit:
        """Waits for its end, frees everything it took, and says how it ended. Read what it said first."""
        self.kill()  # its own children, before its number may become another's
        exit_code = self._process.wait()
        os.close(self.pidfd)
        self.output.close()
        self.status.close()
        last_lines = tuple(self._last_lines)
        error = self._failure
        if exit_code != 0 and not error:  # what a child logged last before it ended well says nothing of its end
            error = next((line.strip() for line in reversed(last_lines) if line.strip()), "")
        return ChildExit(exit_code=exit_code, was_ready=self.is_ready, error=error, last_lines=last_lines)

    def _keep(self, lines: list[bytes]) -> list[str]:
        texts = [line.decode("utf-8", "replace") for line in lines]
        self._last_lines.extend(texts)
        return texts


def _start(spec: ChildSpec, config_fd: int, output_fd: int, status_fd: int) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        **spec.environment,
        PARENT_PID_VARIABLE: str(os.getpid()),
        STATUS_FD_VARIABLE: str(status_fd),
    }
    return subprocess.Popen(
        spec.argv,
        stdin=config_fd,
        stdout=output_fd,
        stderr=output_fd,
        pass_fds=(status_fd, *spec.inherited_fds),
        env=environment,
        process_group=0,
        umask=_PRIVATE_UMASK,
    )


def _open_pidfd(process: "subprocess.Popen[bytes]") -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError:  # no descriptor is left, and a process that cannot be watched must not stay
        process.kill()
        process.wait()
        raise


def _memory_file(data: bytes) -> int:
    """A pipe would make us wait for a child that does not read."""
    fd = os.memfd_create("kilotron-config")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
