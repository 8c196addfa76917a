"""What a coordinator remembers of requests that ended: for a while whom it told, and longer which replica ran them."""

from collections import OrderedDict

_MOST_REMEMBERED = 4096


class EndedRequests:
    """Memory of ended requests, bounded by the time between two pulses of a client, and by a number."""

    def __init__(self) -> None:
        # Of each client: what ended since its last pulse, and between the two pulses before.
        self._told: dict[bytes, tuple[set[str], set[str]]] = {}
        self._replicas: OrderedDict[str, str] = OrderedDict()

    def told(self, client: bytes, request_id: str) -> None:
        """This client was told that its request ended, or knows."""
        self._told.setdefault(client, (set(), set()))[0].add(request_id)

    def was_told(self, client: bytes, request_id: str) -> bool:
        """Whether news of the end can still be on their way."""
        return any(request_id in ids for ids in self._told.get(client, ()))

    def turn_page(self, client: bytes) -> None:
        """The client has sent a pulse: what was told before the last one has arrived long since."""
        if client in self._told:
            recent, before = self._told[client]
            if recent or before:
                self._told[client] = (set(), recent)
            else:
                del self._told[client]

    def forget(self, client: bytes) -> None:
        """The client is gone."""
        self._told.pop(client, None)

    def ran_on(self, request_id: str, replica: str) -> None:
        """A replica got this request."""
        self._replicas[request_id] = replica
        self._replicas.move_to_end(request_id)
        if len(self._replicas) > _MOST_REMEMBERED:
            self._replicas.popitem(last=False)

    def replica_of(self, request_id: str) -> str | None:
        """The replica that got it last, whether it has ended or not."""
        return self._replicas.get(request_id)
