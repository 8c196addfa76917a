"""PulseSender: a replica's signs of life, from a thread and over a connection of its own, so that a long step, or the
import of torch, does not look like death. Knows nothing of requests beyond their ids.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.sockets import DealerSocket
from kilotron.coordinator.wire import (
    ENGINE_DECODER,
    PROTOCOL_VERSION,
    EngineLoad,
    Hello,
    Phase,
    Pulse,
    Unwelcome,
    Welcome,
    encode,
)

_FIRST_PERIOD_S = 0.1
_LONGEST_PERIOD_S = 1.0
# How long `close` may have to wait.
_PATIENCE_S = 0.1


def new_incarnation() -> str:
    """Names one life of a peer."""
    return secrets.token_hex(16)


@dataclass
class ReplicaState:
    """What a replica's two threads tell each other; every field is written by one of them only."""

    incarnation: str
    phase: Phase = "starting"
    progress: float = 0.0
    read_load: Callable[[], EngineLoad] = EngineLoad
    read_held_ids: Callable[[], list[str]] = list
    coordinator: str | None = None
    """The incarnation that the pulse connection was welcomed by; another one than before means to join anew."""
    refusal: Unwelcome | None = None
    """Why the coordinator wants none of this replica."""
    pid: int = field(default_factory=os.getpid)


class PulseSender:
    """Starts sending when it is made; `close` ends it."""

    def __init__(self, credentials: Credentials, state: ReplicaState) -> None:
        self._credentials = credentials
        self._state = state
        self._is_closing = threading.Event()
        self._period_s = _FIRST_PERIOD_S
        self._thread = threading.Thread(target=self._run, name="kilotron-pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        socket = DealerSocket(self._credentials)
        greeted: str | None = None  # the incarnation of ours that was welcomed
        try:
            while not self._is_closing.is_set():
                if greeted != self._state.incarnation:
                    greeted = None
                socket.send(encode(self._pulse() if greeted else self._hello()))
                greeted = self._listen(socket, greeted)
        finally:
            socket.close()

    def _listen(self, socket: DealerSocket, greeted: str | None) -> str | None:
        """Waits until it is time for the next message, which after a change is at once."""
        end = time.monotonic() + self._period_s
        while (left := end - time.monotonic()) > 0 and not self._is_closing.is_set():
            if not socket.wait(min(left, _PATIENCE_S)):
                continue
            frame = socket.receive()
            message = None if frame is None else ENGINE_DECODER.decode(frame)
            if isinstance(message, Welcome):
                self._state.coordinator = message.incarnation
                self._period_s = min(message.heartbeat_s / 4, _LONGEST_PERIOD_S)
                return self._state.incarnation
            if isinstance(message, Unwelcome):
                if message.reason == "hello":
                    return None
                greeted, self._state.refusal = None, message
        return greeted

    def _hello(self) -> Hello:
        state = self._state
        return Hello(PROTOCOL_VERSION, "pulse", self._credentials.token("pulse"), state.incarnation, state.pid)

    def _pulse(self) -> Pulse:
        state = self._state
        return Pulse(state.phase, state.progress, state.read_load(), state.read_held_ids())
