"""The child's end of what joins it to its supervisor: the configuration it is given, and the status that it reports.

Owns the form of a status and the names of the variables. Knows nothing of what any child does.
"""

import os
from typing import Any, Literal, Self

import msgspec

from kilotron.coordinator.supervision.parent_death import die_with_parent

PARENT_PID_VARIABLE = "KILOTRON_CHILD_PARENT_PID"
STATUS_FD_VARIABLE = "KILOTRON_CHILD_STATUS_FD"

MAX_STATUS_BYTES = 1 << 16
_MAX_MESSAGE_CHARS = 4096


class ChildStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of JSON on the status pipe."""

    state: Literal["loading", "ready", "failed"]
    phase: str = ""  # what a loading child is doing
    progress: float | None = None  # of the phase, 0 to 1
    exit_code: int | None = None  # with which a failed child is about to exit
    message: str = ""  # why it failed, for the user
    details: dict[str, Any] = {}  # what a ready child wants to have told, such as the memory it took


class ParentLink:
    """Made once, first thing, in a process that a `Supervisor` started.

    `config` is what the supervisor's `ChildSpec` holds for this child. It came over stdin, which is empty afterwards,
    so secrets in it are in no argument list, no environment and no file.
    """

    def __init__(self, config: bytes, status_fd: int) -> None:
        """Takes the parts; use `connect`."""
        self.config = config
        self._status_fd = status_fd

    @classmethod
    def connect(cls) -> Self:
        """Ties this process to its parent and reads the configuration.

        Raises:
            KeyError: no supervisor started this process.
        """
        # Taken out, so that no child of this child mistakes them for its own.
        parent_pid = int(os.environ.pop(PARENT_PID_VARIABLE))
        status_fd = int(os.environ.pop(STATUS_FD_VARIABLE))
        die_with_parent(parent_pid)
        os.set_inheritable(status_fd, False)
        with open(0, "rb", closefd=False) as stdin:
            config = stdin.read()
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        return cls(config, status_fd)

    def report_phase(self, phase: str, progress: float | None = None) -> None:
        """Tells what this process is doing before it is ready; `progress` is between 0 and 1."""
        self._send(ChildStatus(state="loading", phase=phase, progress=progress))

    def report_ready(self, **details: Any) -> None:
        """Tells that this process does its work from now on; `details` are JSON values."""
        self._send(ChildStatus(state="ready", details=details))

    def report_failed(self, exit_code: int, message: str) -> None:
        """Tells why this process is about to exit, in a sentence for the user. Exiting is left to the caller."""
        self._send(ChildStatus(state="failed", exit_code=exit_code, message=message[:_MAX_MESSAGE_CHARS]))

    def _send(self, status: ChildStatus) -> None:
        line = msgspec.json.encode(status) + b"\n"
        if len(line) > MAX_STATUS_BYTES:
            raise ValueError(f"a status of {len(line)} bytes is too long: at most {MAX_STATUS_BYTES}")
        while line:
            line = line[os.write(self._status_fd, line) :]
