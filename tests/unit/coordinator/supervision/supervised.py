"""A supervisor for tests: small children that say what they do, and reactions to it instead of waiting."""

import os
import select
import sys
from collections.abc import Callable
from typing import Any

from kilotron.coordinator.supervision.child_process import ChildSpec
from kilotron.coordinator.supervision.parent_link import ChildStatus
from kilotron.coordinator.supervision.restart_policy import RestartPolicy
from kilotron.coordinator.supervision.supervisor import SupervisionEnd, Supervisor, SupervisorEvents

FAST = RestartPolicy(delays_s=(0.01,))

# What every child can do; written out here so that a child starts in 20 ms.
PRELUDE = """
import json, os, signal, sys
FD = int(os.environ["KILOTRON_CHILD_STATUS_FD"])
def say(state, **fields): os.write(FD, json.dumps({"state": state, **fields}).encode() + b"\\n")
def ready(): say("ready", details={"pid": os.getpid()})
def on_term(action): signal.signal(signal.SIGTERM, lambda number, frame: action())
def wait():
    while True: signal.pause()
"""
WAITING = "ready(); wait()"
# Deaf to SIGTERM, but tells that it was sent.
DEAF = "on_term(lambda: say('loading', phase='asked')); ready(); wait()"


def child(name: str, body: str, **fields: Any) -> ChildSpec:
    argv = (sys.executable, "-S", "-c", PRELUDE + body)
    return ChildSpec(name=name, argv=argv, **{"restart": FAST, **fields})


class Recorder(SupervisorEvents):
    """Keeps what it is told, and answers each event with the reaction to it, if there is one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.reactions: dict[str, Callable[[], object]] = {}
        self.pids: dict[str, list[int]] = {}
        self.statuses: list[ChildStatus] = []
        self.reasons: list[str] = []

    def on_status(self, name: str, status: ChildStatus) -> None:
        self.statuses.append(status)
        if "pid" in status.details:
            self.pids.setdefault(name, []).append(status.details["pid"])
        if status.phase:
            self._tell(f"{name} {status.phase}")

    def on_ready(self, name: str) -> None:
        self._tell(f"{name} ready")

    def on_exit(self, name: str, why: str) -> None:
        self.reasons.append(why)
        self._tell(f"{name} ended")

    def on_restart(self, name: str, delay_s: float) -> None:
        self._tell(f"{name} restarts")

    def _tell(self, event: str) -> None:
        self.events.append(event)
        number = self.events.count(event)
        reaction = self.reactions.get(f"{event} #{number}") or (self.reactions.get(event) if number == 1 else None)
        if reaction is not None:
            reaction()


def run(specs: list[ChildSpec], recorder: Recorder | None = None, **options: Any) -> SupervisionEnd:
    return Supervisor(specs, recorder, **options).run()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pid: int, timeout_s: float = 5.0) -> bool:
    """Whether a process that is not our child is gone in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)
