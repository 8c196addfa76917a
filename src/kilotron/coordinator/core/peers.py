"""PeerRegistry: who is behind each connection, by an authenticated Hello; and who is refused for ever.

Nothing a connection says counts before its Hello was answered with Welcome. Knows nothing of requests or replicas.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.wire import PROTOCOL_VERSION, Hello, Role, Unwelcome
from kilotron.errors import ProtocolError

Reason: TypeAlias = Literal["hello", "version", "token", "model", "fenced"]

_INCARNATION = re.compile(r"[0-9a-f]{32}")
# One answer per stranger and second: enough for an honest peer, too few to be worth sending garbage for.
_ANSWER_PERIOD_S = 1.0
_MOST_REMEMBERED = 1024


@dataclass(slots=True)
class Peer:
    """A connection that was let in."""

    address: bytes
    """The identity the ROUTER gave it."""
    role: Role
    incarnation: str
    pid: int
    last_heard: float

    @property
    def is_client(self) -> bool:
        return self.role in ("client", "controller")


class PeerRegistry:
    """All connections that were let in, and the incarnations that never will be again."""

    def __init__(self, credentials: Credentials, outbox: Outbox) -> None:
        self._credentials = credentials
        self._outbox = outbox
        self._peers: dict[bytes, Peer] = {}
        self._by_incarnation: dict[tuple[Role, str], Peer] = {}
        self._fenced: set[str] = set()
        self._fenced_peers: OrderedDict[bytes, None] = OrderedDict()
        self._answered: OrderedDict[bytes, float] = OrderedDict()

    def get(self, address: bytes) -> Peer | None:
        """Who is there; None for strangers."""
        return self._peers.get(address)

    def clients(self) -> list[Peer]:
        """Clients and controllers."""
        return [peer for peer in self._peers.values() if peer.is_client]

    def admit(self, address: bytes, hello: Hello, now: float) -> tuple[Peer, Peer | None]:
        """Lets a peer in -> it, and its former connection if it had another.

        Raises:
            ProtocolError: it is refused, and was told so.
        """
        self._check(address, hello, now)
        key = (hello.role, hello.incarnation)
        known, former = self._peers.get(address), self._by_incarnation.get(key)
        if known is not None and (known.role, known.incarnation) != key:
            self._refuse(address, "token", "this connection has said Hello as somebody else", now)
        if known is not None:
            known.last_heard = now
            return known, None
        peer = Peer(address, hello.role, hello.incarnation, hello.pid, now)
        if former is not None:
            del self._peers[former.address]
        self._peers[address] = self._by_incarnation[key] = peer
        self._answered.pop(address, None)
        return peer, former

    def forget(self, address: bytes) -> Peer | None:
        """A connection is gone -> who it was."""
        self._fenced_peers.pop(address, None)
        peer = self._peers.pop(address, None)
        if peer is not None:
            del self._by_incarnation[peer.role, peer.incarnation]
        return peer

    def fence(self, incarnation: str) -> None:
        """Nothing that this replica sends counts from now on."""
        self._fenced.add(incarnation)
        for role in ("engine", "pulse"):
            peer = self._by_incarnation.get((role, incarnation))
            if peer is not None:
                self.forget(peer.address)
                self._fenced_peers[peer.address] = None
        while len(self._fenced_peers) > _MOST_REMEMBERED:
            self._fenced_peers.popitem(last=False)

    def answer_stranger(self, address: bytes, now: float) -> None:
        """Tells a connection without a Hello why it is not heard; at most once a second."""
        if address in self._fenced_peers:
            self.tell(address, "fenced", "this replica was given up; what it sends is dropped", now)
        else:
            self.tell(address, "hello", "say Hello first", now)

    def tell(self, address: bytes, reason: Reason, message: str, now: float) -> None:
        """Unwelcome, at most once a second for each connection."""
        last = self._answered.get(address)
        if last is not None and now - last < _ANSWER_PERIOD_S:
            return
        self._answered[address] = now
        self._answered.move_to_end(address)
        if len(self._answered) > _MOST_REMEMBERED:
            self._answered.popitem(last=False)
        self._outbox.send(address, Unwelcome(reason, message))

    def _check(self, address: bytes, hello: Hello, now: float) -> None:
        if hello.protocol_version != PROTOCOL_VERSION:
            versions = f"{hello.protocol_version}; this service speaks {PROTOCOL_VERSION}"
            self._refuse(address, "version", f"protocol version {versions}", now)
        try:
            self._credentials.check(hello.role, hello.token)
        except (ProtocolError, UnicodeEncodeError):
            self._refuse(address, "token", f"wrong token for a {hello.role}", now)
        if not _INCARNATION.fullmatch(hello.incarnation):
            self._refuse(address, "token", "an incarnation is 32 hex digits", now)
        if hello.incarnation in self._fenced:
            self._refuse(address, "fenced", "this replica was given up; start again as a new one", now)

    def _refuse(self, address: bytes, reason: Reason, message: str, now: float) -> None:
        # Not rate limited by what the same connection was told before: a Hello deserves its own answer.
        self._answered.pop(address, None)
        self.tell(address, reason, message, now)
        raise ProtocolError(message)
