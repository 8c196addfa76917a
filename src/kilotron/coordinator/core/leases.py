"""LeaseKeeper: compares what engines and clients say they hold with the ledger, and ends what one side has forgotten.

This is how a message that was lost is noticed when nobody died.
"""

from kilotron.coordinator.core.ended_requests import EndedRequests
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.replicas import Replica
from kilotron.coordinator.core.request_flow import RequestFlow
from kilotron.coordinator.core.request_ledger import RequestLedger
from kilotron.coordinator.request_errors import to_wire
from kilotron.coordinator.wire import Abort, Failure
from kilotron.errors import EngineDiedError

# A request that was sent to an engine this long ago is in its list, or it never arrived.
_LEASE_S = 2.0
_MOST_MISSES = 2
# Lists that were queued up behind each other are one list, read late.
_LEAST_GAP_S = 0.1


class LeaseKeeper:
    """Reads the lists of request ids that come with pulses."""

    def __init__(self, ledger: RequestLedger, flow: RequestFlow, ended: EndedRequests, outbox: Outbox) -> None:
        self._ledger = ledger
        self._flow = flow
        self._ended = ended
        self._outbox = outbox
        self._last_read: dict[str | bytes, float] = {}

    def check_replica(self, replica: Replica, held_ids: list[str], now: float) -> None:
        """What a replica does not name twice is lost there; what it should not have is aborted."""
        if replica.engine_peer is None or not self._is_new(replica.incarnation, now):
            return
        held = set(held_ids)
        for request in self._ledger.of_replica(replica.incarnation):
            if request.request_id in held:
                request.num_missed_by_replica = 0
            elif now - request.dispatched > _LEASE_S:
                request.num_missed_by_replica += 1
                if request.num_missed_by_replica >= _MOST_MISSES:
                    self._flow.lose(request, "the request was lost on its way to the engine", now)
        for request_id in held:
            known = self._ledger.get(request_id)
            if known is None or known.replica != replica.incarnation:
                self._outbox.send(replica.engine_peer, Abort(request_id))

    def check_client(self, client: bytes, held_ids: list[str], now: float) -> None:
        """What a client does not name twice has no reader; what nobody here knows will never get an answer."""
        if not self._is_new(client, now):
            return
        held = set(held_ids)
        for request in self._ledger.of_client(client):
            if request.request_id in held:
                request.num_missed_by_client = 0
                continue
            request.num_missed_by_client += 1
            if request.num_missed_by_client >= _MOST_MISSES:
                self._flow.drop(request)
        for request_id in held:
            known = self._ledger.get(request_id)
            is_mine = known is not None and known.client == client
            if not is_mine and not self._ended.was_told(client, request_id):
                self._ended.told(client, request_id)
                error = EngineDiedError("the request was lost on its way to the coordinator")
                self._outbox.send(client, Failure(request_id, to_wire(error)))
        self._ended.turn_page(client)

    def forget(self, peer: str | bytes) -> None:
        """A replica or client is gone."""
        self._last_read.pop(peer, None)

    def _is_new(self, peer: str | bytes, now: float) -> bool:
        last = self._last_read.get(peer)
        if last is not None and now - last < _LEAST_GAP_S:
            return False
        self._last_read[peer] = now
        return True
