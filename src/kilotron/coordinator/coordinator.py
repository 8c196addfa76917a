"""DataParallelInferenceCoordinator: the process between clients and engines. One thread, one socket, one core.

Moves frames between the socket and `CoordinatorCore` and does what that wishes. Nothing that a peer sends, or fails to
read, ends the loop. Imports no torch.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from kilotron.coordinator.coordinator_config import CoordinatorConfig
from kilotron.coordinator.core.coordinator_core import CoordinatorCore
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.peer_processes import PeerProcesses
from kilotron.coordinator.sockets import RouterSocket
from kilotron.coordinator.wire import COORDINATOR_DECODER, Message, encode
from kilotron.errors import ProtocolError

_log = logging.getLogger(__name__)

_MOST_MESSAGES_PER_TURN = 256
_TICK_S = 0.05
# What a process sent may still be in a queue of ZMQ's when the kernel tells of its end.
_LAST_WORDS_S = 0.02


class DataParallelInferenceCoordinator:
    """Listens from the moment it is made; `run` works until `stop`.

    Args:
        config: limits and times.
        credentials: where to listen, and what peers must show.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, config: CoordinatorConfig, credentials: Credentials) -> None:
        self._router = RouterSocket(credentials)
        is_local = credentials.address.startswith("ipc://")
        self._core = CoordinatorCore(config, credentials, secrets.token_hex(16), os.getpid() if is_local else 0)
        self._watches_processes = is_local
        self._tick_s = min(_TICK_S, config.heartbeat_s / 8)
        self._next_tick = 0.0
        self._poller = zmq.Poller()
        self._poller.register(self._router.socket, zmq.POLLIN)
        self._processes = PeerProcesses(self._poller)
        self._ended: list[tuple[float, bytes]] = []
        self._is_stopping = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller.register(self._wake_fd, zmq.POLLIN)

    def run(self) -> None:
        """Works until `stop`, then closes the socket. To be called once."""
        try:
            while not self._is_stopping:
                self._turn()
        finally:
            self._processes.close()
            self._router.close()
            wake_fd, self._wake_fd = self._wake_fd, -1
            os.close(wake_fd)

    def stop(self) -> None:
        """Ends `run` soon; safe from any thread and from signal handlers. Idempotent."""
        self._is_stopping = True
        with suppress(OSError, ValueError):  # closed already
            os.eventfd_write(self._wake_fd, 1)

    def _turn(self) -> None:
        """Waits for something to happen, takes in what did, and lets time pass."""
        next_look = min([self._next_tick, *(due for due, _ in self._ended)])
        wait_s = max(next_look - time.monotonic(), 0.0)
        ready = self._poller.poll(int(wait_s * 1000) + 1)
        for _ in range(_MOST_MESSAGES_PER_TURN):
            received = self._router.receive()
            if received is None:
                break
            self._take(*received)
        now = time.monotonic()
        for source, _ in ready:
            if isinstance(source, int):
                self._ended += [(now + _LAST_WORDS_S, peer) for peer in self._processes.take_ended(source)]
        self._let_ended_go(now)
        if now >= self._next_tick:
            self._next_tick = now + self._tick_s
            self._guarded(self._core.tick, now)
            self._fulfil()

    def _let_ended_go(self, now: float) -> None:
        """Peers whose process ended a moment ago, so that what it said last has come through."""
        gone = [peer for due, peer in self._ended if due <= now]
        if gone:
            self._ended = [entry for entry in self._ended if entry[0] > now]
            for peer in gone:
                self._leave(peer)
            self._fulfil()

    def _take(self, peer: bytes, frames: list[bytes]) -> None:
        now = time.monotonic()
        try:
            message = COORDINATOR_DECODER.decode(frames[0]) if len(frames) == 1 else None
        except ProtocolError as error:
            _log.debug("dropped: %s", error)
            message = None
        if message is None:
            self._guarded(self._core.receive_garbage, peer, now)
        else:
            self._guarded(self._core.receive, peer, message, now)
        self._fulfil()

    def _leave(self, peer: bytes) -> None:
        self._processes.forget(peer)
        self._guarded(self._core.peer_left, peer, time.monotonic())

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        """Whatever goes wrong about one message is no reason to stop serving all the others."""
        try:
            call(*args)
        except Exception:
            _log.exception("%s failed", call.__name__)
            self._core.metrics.count("internal_errors")

    def _fulfil(self) -> None:
        """Does what the core wants, and what it wants next when some of that cannot be done."""
        outbox = self._core.outbox
        while outbox.sends or outbox.watches or outbox.kills:
            gone = self._watch(outbox.take_watches())
            for pid in outbox.take_kills():
                self._processes.kill(pid)
            gone |= self._send(outbox.take_sends())
            for peer in gone:
                self._leave(peer)

    def _watch(self, watches: list[tuple[bytes, int]]) -> set[bytes]:
        """-> peers that are gone already."""
        if not self._watches_processes:
            return set()
        return {peer for peer, pid in watches if not self._processes.watch(peer, pid)}

    def _send(self, sends: list[tuple[bytes, Message]]) -> set[bytes]:
        """-> peers that nothing can be sent to any more."""
        gone: set[bytes] = set()
        last: Message | None = None
        frame = b""
        for peer, message in sends:
            if peer in gone:
                continue
            if message is not last:  # a status goes to all clients
                try:
                    frame = encode(message)
                except (ProtocolError, TypeError, ValueError, OverflowError) as error:
                    # Whoever waits for it is told by the leases that it was lost.
                    _log.error("a %s could not be sent: %s", type(message).__name__, error)
                    self._core.metrics.count("internal_errors")
                    continue
                last = message
            if not self._router.send(peer, frame):
                gone.add(peer)
        return gone
