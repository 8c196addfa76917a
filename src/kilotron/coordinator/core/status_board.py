"""StatusBoard: tells all clients how the service is, regularly and at once when it changes."""

from kilotron.coordinator.core.lifecycle import Lifecycle
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.peers import PeerRegistry
from kilotron.coordinator.core.replicas import ReplicaTable
from kilotron.coordinator.core.request_ledger import RequestLedger
from kilotron.coordinator.wire import EngineFacts, ServiceState, ServiceStatus

_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 0.25, 1.0


class StatusBoard:
    """Makes and sends `ServiceStatus`."""

    def __init__(
        self,
        peers: PeerRegistry,
        replicas: ReplicaTable,
        lifecycle: Lifecycle,
        ledger: RequestLedger,
        outbox: Outbox,
        heartbeat_s: float,
    ) -> None:
        self._peers = peers
        self._replicas = replicas
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._outbox = outbox
        self._period_s = min(max(heartbeat_s / 4, _SHORTEST_PERIOD_S), _LONGEST_PERIOD_S)
        self._next = 0.0
        self._shown: ServiceState | None = None
        self._has_news = False
        self._facts: EngineFacts | None = None

    def mark_changed(self) -> None:
        """Something happened to a replica that clients should know at once."""
        self._has_news = True

    def greet(self, client: bytes, now: float) -> None:
        """The first status for a client, with the facts."""
        self._outbox.send(client, self._status(self._replicas.facts, now))

    def update(self, now: float) -> None:
        """Tells all clients if there is news, or it is time."""
        shown = self._lifecycle.state
        if not self._has_news and shown == self._shown and now < self._next:
            return
        self._has_news, self._shown, self._next = False, shown, now + self._period_s
        facts = self._replicas.facts
        status = self._status(None if facts is self._facts else facts, now)
        self._facts = facts
        for peer in self._peers.clients():
            self._outbox.send(peer.address, status)

    def _status(self, facts: EngineFacts | None, now: float) -> ServiceStatus:
        return ServiceStatus(
            state=self._lifecycle.state,
            replicas=self._replicas.statuses(now),
            facts=facts,
            num_queued=self._ledger.num_queued,
            num_in_flight=len(self._ledger),
        )
