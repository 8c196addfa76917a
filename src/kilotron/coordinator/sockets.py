"""The ZMQ sockets of a service: one ROUTER in the coordinator, a DEALER in each peer; bounded, and closed to strangers.

An ipc socket is a file that only its owner can open; over tcp nobody without the peers' CURVE key gets through. Knows
nothing of messages.
"""

import os
import socket
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from kilotron.coordinator.credentials import Credentials, CurveKeys
from kilotron.coordinator.wire import MAX_FRAME_BYTES
from kilotron.errors import ConfigError

# Messages queued for one peer before it counts as one that does not read.
_HIGH_WATER_MARK = 4096
_TCP_HEARTBEAT_MS = 2000


class RouterSocket:
    """The coordinator's socket. Sending to a peer that left, or that does not read, is told to the caller.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self._authenticator: ThreadAuthenticator | None = None
        _set_limits(self.socket, credentials.address)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            if credentials.curve is not None:
                self._lock(credentials.curve)
            self._bind(credentials.address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"the coordinator cannot listen at {credentials.address}: {error}") from error

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """The next message as (peer, frames); None when there is none now."""
        if not has_message(self.socket):
            return None
        peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
        return peer, frames

    def send(self, peer: bytes, frame: bytes) -> bool:
        """False when the peer has left or does not read."""
        try:
            self.socket.send_multipart((peer, frame), zmq.NOBLOCK, copy=len(frame) < 4096)
        except (zmq.Again, zmq.ZMQError):
            return False
        return True

    def close(self) -> None:
        """Idempotent."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self.socket.close(linger=0)
        self._context.term()

    def _bind(self, address: str) -> None:
        if not address.startswith("ipc://"):
            self.socket.bind(address)
            return
        path = Path(address.removeprefix("ipc://"))
        if len(os.fsencode(path)) > 107:
            raise ConfigError(f"{path} is longer than the 107 bytes that the path of a socket may have; set TMPDIR")
        before = os.umask(0o077)
        try:
            self.socket.bind(address)
        finally:
            os.umask(before)

    def _lock(self, curve: CurveKeys) -> None:
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=_OneKey(curve.client_public))
        self.socket.curve_server = True
        self.socket.curve_secretkey = curve.server_secret.encode()
        self.socket.curve_publickey = curve.server_public.encode()


class DealerSocket:
    """A peer's socket. It connects by itself, again and again, whether the coordinator is there or not."""

    def __init__(self, credentials: Credentials) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        _set_limits(self.socket, credentials.address)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        # Only to a coordinator that is there: what waits for one that is gone would reach the next, out of its context.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        if credentials.curve is not None:
            self.socket.curve_serverkey = credentials.curve.server_public.encode()
            self.socket.curve_publickey = credentials.curve.client_public.encode()
            self.socket.curve_secretkey = credentials.curve.client_secret.encode()
        self.socket.connect(credentials.address)

    @property
    def fd(self) -> int:
        """Becomes readable when there may be something to receive; then `receive` until there is nothing (ZMQ_FD)."""
        return self.socket.fileno()

    def receive(self) -> bytes | None:
        """The next frame; None when there is none now."""
        if not has_message(self.socket):
            return None
        frames = self.socket.recv_multipart(zmq.NOBLOCK)
        return frames[0] if len(frames) == 1 else b""

    def send(self, frame: bytes) -> bool:
        """False when nobody is connected, or the coordinator does not read."""
        try:
            self.socket.send(frame, zmq.NOBLOCK, copy=len(frame) < 4096)
        except zmq.Again:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Waits for a message; whether there is one."""
        return bool(self.socket.poll(int(seconds * 1000), zmq.POLLIN))

    def close(self, linger_ms: int = 0) -> None:
        """Idempotent; `linger_ms` lets what was sent go out."""
        self.socket.close(linger=linger_ms)
        self._context.term()


def free_tcp_address(host: str) -> str:
    """An address at a port that is free now."""
    with socket.create_server((host, 0)) as listener:
        return f"tcp://{host}:{listener.getsockname()[1]}"


def has_message(socket_: zmq.Socket[bytes]) -> bool:
    """Whether something can be received now; asking costs 2.5 us where trying to receive in vain costs 6."""
    return bool(int(socket_.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class _OneKey:
    """Lets in who has the peers' key pair."""

    def __init__(self, public_key: str) -> None:
        self._public_key = public_key.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by the authenticator."""
        return zmq.utils.z85.encode(key) == self._public_key if len(key) == 32 else key == self._public_key


def _set_limits(socket_: zmq.Socket[bytes], address: str) -> None:
    socket_.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket_.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
    socket_.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
    socket_.setsockopt(zmq.LINGER, 0)
    if address.startswith("tcp://"):
        # A host that vanished says nothing. On this one the system tells at once of a process that ended, and a process
        # that has to wait for a processor for so long is no reason to lose what it does.
        socket_.setsockopt(zmq.HEARTBEAT_IVL, _TCP_HEARTBEAT_MS)
