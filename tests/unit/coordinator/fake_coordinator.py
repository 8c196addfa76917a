"""A coordinator that a test plays by hand: it hears what peers send and says what it is told to."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.sockets import RouterSocket
from kilotron.coordinator.wire import COORDINATOR_DECODER, Hello, Message, Welcome, encode

M = TypeVar("M", bound=Message)
PATIENCE_S = 10.0


class FakeCoordinator:
    """One life of a coordinator at an ipc address."""

    def __init__(self, credentials: Credentials, *, heartbeat_s: float = 2.0) -> None:
        self._router = RouterSocket(credentials)
        self._heartbeat_s = heartbeat_s
        self._heard: list[tuple[bytes, Message]] = []

    def hear(self, kind: type[M], **fields: object) -> tuple[bytes, M]:
        """The next message of that kind with those fields, and who sent it; others wait for their turn."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for index, (peer, message) in enumerate(self._heard):
                if isinstance(message, kind) and all(getattr(message, name) == value for name, value in fields.items()):
                    del self._heard[index]
                    return peer, message
            self.listen(0.01)
        raise AssertionError(f"no {kind.__name__} with {fields} came; heard {self._heard}")

    def listen(self, seconds: float) -> None:
        """Takes in what has come."""
        self._router.socket.poll(int(seconds * 1000))
        while (received := self._router.receive()) is not None:
            peer, frames = received
            self._heard.append((peer, COORDINATOR_DECODER.decode(frames[0])))

    def has_heard(self, kind: type[Message]) -> bool:
        """Whether a message of that kind waits."""
        return any(isinstance(message, kind) for _, message in self._heard)

    def say(self, peer: bytes, message: Message) -> None:
        """Sends one message."""
        assert self._router.send(peer, encode(message))

    def welcome(self, role: str, incarnation: str = "c" * 32) -> bytes:
        """Lets the next peer of a role in."""
        peer, _ = self.hear(Hello, role=role)
        self.say(peer, Welcome(incarnation, 0, self._heartbeat_s))
        return peer

    def close(self) -> None:
        """Ends this life."""
        self._router.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_credentials(folder: Path) -> Credentials:
    """At a socket in that folder."""
    return Credentials.create(f"ipc://{folder}/c")
