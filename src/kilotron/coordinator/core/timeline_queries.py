"""TimelineQueries: carries questions about a request to the replica that ran it, and the answers back."""

import itertools
from collections import OrderedDict

from kilotron.coordinator.core.ended_requests import EndedRequests
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.replicas import ReplicaTable
from kilotron.coordinator.wire import TimelineAnswer, TimelineQuery

_MOST_OPEN = 1024


class TimelineQueries:
    """Questions that are open; a replica that dies owes no answer, and the client's own time limit ends the wait."""

    def __init__(self, replicas: ReplicaTable, ended: EndedRequests, outbox: Outbox) -> None:
        self._replicas = replicas
        self._ended = ended
        self._outbox = outbox
        self._open: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._numbers = itertools.count(1)

    def ask(self, client: bytes, query: TimelineQuery) -> None:
        """A client's question; None is the answer when no living replica has had the request."""
        incarnation = self._ended.replica_of(query.request_id)
        replica = None if incarnation is None else self._replicas.get(incarnation)
        if replica is None or replica.engine_peer is None:
            self._outbox.send(client, TimelineAnswer(query.nonce, None))
            return
        nonce = str(next(self._numbers))
        self._open[nonce] = (client, query.nonce)
        if len(self._open) > _MOST_OPEN:
            oldest_client, oldest_nonce = self._open.popitem(last=False)[1]
            self._outbox.send(oldest_client, TimelineAnswer(oldest_nonce, None))
        self._outbox.send(replica.engine_peer, TimelineQuery(nonce, query.request_id))

    def answered(self, answer: TimelineAnswer) -> None:
        """A replica's answer."""
        asked = self._open.pop(answer.nonce, None)
        if asked is not None:
            self._outbox.send(asked[0], TimelineAnswer(asked[1], answer.timeline))
