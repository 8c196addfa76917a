"""Peers of a real coordinator made of a bare socket, and the coordinator in a thread of the test."""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import zmq

from kilotron.coordinator.coordinator import DataParallelInferenceCoordinator
from kilotron.coordinator.coordinator_config import CoordinatorConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.sockets import DealerSocket
from kilotron.coordinator.wire import (
    CLIENT_DECODER,
    ENGINE_DECODER,
    EngineLoad,
    Join,
    Message,
    Pulse,
    Role,
    ServiceStatus,
    Welcome,
    encode,
)
from unit.coordinator.core.core_world import FACTS, hello_of, incarnation_of

PATIENCE_S = 10.0
M = TypeVar("M", bound=Message)


class RawPeer:
    """Sends what it is told to, and reads one kind of message at a time."""

    def __init__(self, credentials: Credentials, role: Role = "client") -> None:
        self.credentials = credentials
        self.role = role
        self.incarnation = ""
        self._dealer = DealerSocket(credentials)
        self._decoder = ENGINE_DECODER if role in ("engine", "pulse") else CLIENT_DECODER

    def send(self, *frames: bytes) -> None:
        self._dealer.socket.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1000))
        self._dealer.socket.send_multipart(frames)

    def say(self, message: Message) -> None:
        self.send(encode(message))

    def try_to_say(self, message: Message) -> None:
        """If there is a connection."""
        self._dealer.send(encode(message))

    def hello(self, incarnation: str, pid: int = 0) -> None:
        self.incarnation = incarnation
        self.say(hello_of(self.role, incarnation, pid, self.credentials))
        self.wait_for(Welcome)

    def wait_for(self, kind: type[M], timeout_s: float = PATIENCE_S, **fields: Any) -> M:
        """The next message of that kind with those fields; others are dropped."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            if not self._dealer.wait(left):
                break
            frame = self._dealer.receive()
            message = None if frame is None else self._decoder.decode(frame)
            if isinstance(message, kind) and all(getattr(message, name) == fields[name] for name in fields):
                return message
        raise TimeoutError(f"no {kind.__name__} within {timeout_s} s")

    def status(self) -> ServiceStatus:
        """The next one."""
        return self.wait_for(ServiceStatus)

    def wait_until_ready(self, timeout_s: float = PATIENCE_S) -> None:
        """Until a status says that a request would be run."""
        end = time.monotonic() + timeout_s
        while not self.wait_for(ServiceStatus, max(end - time.monotonic(), 0.001)).is_ready:
            pass

    def received(self, kind: type[M]) -> list[M]:
        """All that is there now of one kind."""
        found = []
        while (frame := self._dealer.receive()) is not None:
            message = self._decoder.decode(frame)
            if isinstance(message, kind):
                found.append(message)
        return found

    def close(self) -> None:
        self._dealer.close()


class RawReplica:
    """Both connections of a replica."""

    def __init__(self, credentials: Credentials, number: int, pid: int = 0) -> None:
        self.pulse, self.engine = RawPeer(credentials, "pulse"), RawPeer(credentials, "engine")
        self.pulse.hello(incarnation_of(number), pid)
        self.engine.hello(incarnation_of(number), pid)
        self.engine.say(Join(FACTS))
        self.beat()

    def beat(self) -> None:
        self.pulse.say(Pulse("ready", 1.0, EngineLoad()))

    def close(self) -> None:
        self.pulse.close()
        self.engine.close()


class RunningCoordinator:
    """A coordinator at work; hands out peers and closes them at the end."""

    def __init__(self, address: str, **options: Any) -> None:
        self.credentials = Credentials.create(address)
        options = {"heartbeat_s": 5.0} | options
        self.coordinator = DataParallelInferenceCoordinator(CoordinatorConfig(**options), self.credentials)
        self.thread = threading.Thread(target=self.coordinator.run, daemon=True)
        self.thread.start()
        self._peers: list[RawPeer | RawReplica] = []
        self._number = 0

    def stranger(self) -> RawPeer:
        self._peers.append(peer := RawPeer(self.credentials))
        return peer

    def client(self, role: Role = "client") -> RawPeer:
        self._number += 1
        self._peers.append(peer := RawPeer(self.credentials, role))
        peer.hello(incarnation_of(self._number))
        return peer

    def replica(self) -> RawReplica:
        self._number += 1
        self._peers.append(replica := RawReplica(self.credentials, self._number))
        watcher, incarnation = self.client(), replica.engine.incarnation
        while not any(row.incarnation == incarnation and row.phase == "ready" for row in watcher.status().replicas):
            pass
        return replica

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self.coordinator.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@contextmanager
def running_coordinator(**options: Any) -> Iterator[RunningCoordinator]:
    folder = Path(tempfile.mkdtemp(prefix="kilotron-test-"))  # a socket's path must be short
    try:
        running = RunningCoordinator(f"ipc://{folder}/c", **options)
        try:
            yield running
        finally:
            running.close()
    finally:
        shutil.rmtree(folder)
