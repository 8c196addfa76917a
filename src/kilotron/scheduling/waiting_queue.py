"""WaitingQueue: who is next, by priority, age and arrival."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from kilotron.scheduling.scheduled_request import ScheduledRequest


class WaitingQueue:
    """Requests in order of aged priority, then arrival.

    A request's priority number falls by one for each `aging_steps` steps it has waited since it first came, so
    that nobody waits for ever behind a stream of more important ones.
    """

    def __init__(self, aging_steps: int) -> None:
        self._aging_steps = aging_steps
        # Within one priority the order of arrival is the order of age, so only the heads have to be compared.
        self._by_priority: dict[int, OrderedDict[int, ScheduledRequest]] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def append(self, item: ScheduledRequest) -> None:
        """Adds a newcomer."""
        self._bucket(item)[item.request.request_id] = item
        self._num_waiting += 1

    def put_back(self, item: ScheduledRequest) -> None:
        """Adds one that ran before, in its place by arrival, which is near the front."""
        bucket = self._bucket(item)
        older = list(takewhile(lambda other: other.arrival_order < item.arrival_order, bucket.values()))
        bucket[item.request.request_id] = item
        for each in (item, *reversed(older)):
            bucket.move_to_end(each.request.request_id, last=False)
        self._num_waiting += 1

    def remove(self, item: ScheduledRequest) -> None:
        """Takes one out, wherever it stands."""
        priority = item.request.sampling_params.priority
        bucket = self._by_priority[priority]
        del bucket[item.request.request_id]
        if not bucket:
            del self._by_priority[priority]
        self._num_waiting -= 1

    def in_order(self, step: int) -> Iterator[ScheduledRequest]:
        """All waiting requests, the next one first; the queue must not change meanwhile."""
        heads: list[tuple[int, int, int, ScheduledRequest, Iterator[ScheduledRequest]]] = []
        for bucket in self._by_priority.values():
            _push(heads, iter(bucket.values()), step, self._aging_steps)
        while heads:
            _, _, _, item, rest = heapq.heappop(heads)
            yield item
            _push(heads, rest, step, self._aging_steps)

    def _bucket(self, item: ScheduledRequest) -> OrderedDict[int, ScheduledRequest]:
        return self._by_priority.setdefault(item.request.sampling_params.priority, OrderedDict())


def _push(
    heads: list[tuple[int, int, int, ScheduledRequest, Iterator[ScheduledRequest]]],
    rest: Iterator[ScheduledRequest],
    step: int,
    aging_steps: int,
) -> None:
    item = next(rest, None)
    if item is not None:
        aged = item.request.sampling_params.priority - (step - item.queued_step) // aging_steps
        heapq.heappush(heads, (aged, item.arrival_order, item.request.request_id, item, rest))
