"""RequestLedger: every accepted request from its arrival to its end, and the queue of those that no replica has.

Pure bookkeeping; who gets what, and what happens when a replica dies, is decided in request_flow.py.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kilotron.coordinator.wire import Submission
from kilotron.errors import DuplicateRequestError, NoPlaceInQueueError, QueueFullError, QuotaExceededError

_NEVER = float("inf")


@dataclass(slots=True, eq=False)
class TrackedRequest:
    """One accepted request. Times are seconds of the coordinator's clock."""

    submission: Submission
    client: bytes
    arrival: float
    deadline: float
    order: tuple[int, int]
    """Priority, then arrival: its place in the queue, also when it comes back."""
    num_choices: int
    replica: str | None = None
    """None while it is queued."""
    dispatched: float = 0.0
    num_attempts: int = 0
    num_deaths: int = 0
    lost_on: set[str] = field(default_factory=set)
    """Living replicas that lost it and do not get it again."""
    is_started: bool = False
    """Whether the client got some of its output, so that it cannot start again."""
    num_forwarded: list[int] = field(default_factory=list)
    """Tokens that the client got, of each choice; -1 after the choice's end."""
    num_left: int = 0
    """Choices that have not ended."""
    num_outstanding: int = 0
    """Tokens that the router counts for it."""
    last_outputs: list[float] = field(default_factory=list)
    """When tokens of each choice were forwarded last; 0 before the first."""
    num_missed_by_replica: int = 0
    num_missed_by_client: int = 0
    """Pulses in a row that did not name it."""

    @property
    def request_id(self) -> str:
        return self.submission.request_id

    @property
    def num_prompt_tokens(self) -> int:
        return self.submission.num_input_tokens

    @property
    def num_sequences(self) -> int:
        """What runs side by side for it: its choices, each with its beams."""
        return self.num_choices * beam_width_of(self.submission)


def beam_width_of(submission: Submission) -> int:
    """Beams of a checked submission; 1 without beam search."""
    width: int = submission.params.get("beam_width", 1)
    return width


class RequestLedger:
    """All requests under way.

    Args:
        max_queued_requests: most that wait here.
        max_concurrent_per_owner: most under way for one owner; the empty owner has no limit.
    """

    def __init__(self, max_queued_requests: int, max_concurrent_per_owner: int) -> None:
        self._max_queued_requests = max_queued_requests
        self._max_concurrent_per_owner = max_concurrent_per_owner
        self._requests: dict[str, TrackedRequest] = {}
        self._by_client: dict[bytes, dict[str, TrackedRequest]] = {}
        self._by_replica: dict[str, dict[str, TrackedRequest]] = {}
        self._num_of_owner: Counter[str] = Counter()
        self._keys: set[tuple[str, str]] = set()
        self._sequence = itertools.count()
        # What left the queue otherwise than as its head stays in both heaps until it comes up, or is swept out.
        self._queue: list[tuple[tuple[int, int], TrackedRequest]] = []
        self._deadlines: list[tuple[float, int, TrackedRequest]] = []
        self.num_queued = 0
        self.num_queued_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[TrackedRequest]:
        return iter(list(self._requests.values()))

    def get(self, request_id: str) -> TrackedRequest | None:
        """A request under way."""
        return self._requests.get(request_id)

    def of_client(self, client: bytes) -> list[TrackedRequest]:
        """In order of arrival."""
        return list(self._by_client.get(client, {}).values())

    def of_replica(self, replica: str) -> list[TrackedRequest]:
        """In the order in which the replica got them."""
        return list(self._by_replica.get(replica, {}).values())

    @property
    def queued(self) -> list[TrackedRequest]:
        """In the order in which they will go."""
        return [request for _, request in sorted(self._queue, key=lambda entry: entry[0]) if self._is_queued(request)]

    def check_identity(self, submission: Submission) -> None:
        """Whether a request may be taken in beside those under way.

        Raises:
            DuplicateRequestError: its id or its owner's idempotency key is under way.
            QuotaExceededError: its owner has as many under way as allowed.
        """
        owner, key = submission.owner, submission.idempotency_key
        if submission.request_id in self._requests:
            raise DuplicateRequestError(f"a request {submission.request_id} is under way")
        if key and (owner, key) in self._keys:
            raise DuplicateRequestError("a request with the same idempotency key is under way")
        if owner and self._num_of_owner[owner] >= self._max_concurrent_per_owner:
            limit = self._max_concurrent_per_owner
            raise QuotaExceededError(f"{limit} requests of one key are under way, which is the limit", 1.0)

    def check_queue(self, num_prompt_tokens: int, max_queued_tokens: int, retry_after_s: float) -> None:
        """Whether another request may wait.

        Raises:
            NoPlaceInQueueError: too many requests wait already.
            QueueFullError: too many prompt tokens do.
        """
        if self.num_queued >= self._max_queued_requests:
            raise NoPlaceInQueueError(f"{self.num_queued} requests wait already, which is the limit", retry_after_s)
        if self.num_queued_tokens + num_prompt_tokens > max_queued_tokens:
            raise QueueFullError(
                f"{self.num_queued_tokens} prompt tokens wait already; {num_prompt_tokens} more exceed "
                f"the limit of {max_queued_tokens}",
                retry_after_s,
            )

    def add(self, submission: Submission, client: bytes, now: float, num_choices: int, priority: int) -> TrackedRequest:
        """Takes a checked request in, at its place in the queue."""
        deadline = _NEVER if submission.timeout_s is None else now + submission.timeout_s
        order = (priority, next(self._sequence))
        request = TrackedRequest(submission, client, now, deadline, order, num_choices)
        self._requests[submission.request_id] = request
        self._by_client.setdefault(client, {})[submission.request_id] = request
        if submission.owner:
            self._num_of_owner[submission.owner] += 1
        if submission.idempotency_key:
            self._keys.add((submission.owner, submission.idempotency_key))
        if deadline < _NEVER:
            heapq.heappush(self._deadlines, (deadline, order[1], request))
        self._enqueue(request)
        return request

    def first_queued(self) -> TrackedRequest | None:
        """Who is next."""
        queue = self._queue
        while queue and not self._is_queued(queue[0][1]):
            heapq.heappop(queue)
        return queue[0][1] if queue else None

    def assign(self, request: TrackedRequest, replica: str, now: float) -> None:
        """A replica gets a queued request."""
        self._leave_queue(request)
        request.replica, request.dispatched = replica, now
        request.num_attempts += 1
        request.num_left, request.num_forwarded = request.num_choices, [0] * request.num_choices
        request.last_outputs = [0.0] * request.num_choices
        request.num_missed_by_replica = 0
        self._by_replica.setdefault(replica, {})[request.request_id] = request

    def requeue(self, request: TrackedRequest) -> None:
        """Back from a replica to its old place, which is before all that came later; no bound counts here.

        Its deadline must be ahead: one that `expired` has passed over is not looked at again.
        """
        self._leave_replica(request)
        self._enqueue(request)

    def end(self, request: TrackedRequest) -> None:
        """Nothing of it is left."""
        if request.replica is None:
            self._leave_queue(request)
        self._leave_replica(request)
        submission = request.submission
        del self._requests[submission.request_id]
        _remove(self._by_client, request.client, submission.request_id)
        self._keys.discard((submission.owner, submission.idempotency_key))
        if submission.owner:
            self._num_of_owner[submission.owner] -= 1
            if not self._num_of_owner[submission.owner]:
                del self._num_of_owner[submission.owner]
        self._sweep()

    def expired(self, now: float) -> list[TrackedRequest]:
        """Queued requests whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if self._is_queued(request):
                expired.append(request)
        return expired

    def _is_queued(self, request: TrackedRequest) -> bool:
        return request.replica is None and self._requests.get(request.request_id) is request

    def _enqueue(self, request: TrackedRequest) -> None:
        heapq.heappush(self._queue, (request.order, request))
        self.num_queued += 1
        self.num_queued_tokens += request.num_prompt_tokens

    def _leave_queue(self, request: TrackedRequest) -> None:
        self.num_queued -= 1
        self.num_queued_tokens -= request.num_prompt_tokens
        if self._queue[0][1] is request:
            heapq.heappop(self._queue)

    def _leave_replica(self, request: TrackedRequest) -> None:
        if request.replica is not None:
            _remove(self._by_replica, request.replica, request.request_id)
            request.replica = None

    def _sweep(self) -> None:
        """Keeps the heaps in proportion to what they are for."""
        if len(self._queue) > 2 * self.num_queued + 64:
            self._queue = [entry for entry in self._queue if self._is_queued(entry[1])]
            heapq.heapify(self._queue)
        if len(self._deadlines) > 2 * len(self._requests) + 64:
            self._deadlines = [entry for entry in self._deadlines if self.get(entry[2].request_id) is entry[2]]
            heapq.heapify(self._deadlines)


def _remove(groups: dict[Any, dict[str, TrackedRequest]], group: Any, request_id: str) -> None:
    members = groups[group]
    del members[request_id]
    if not members:
        del groups[group]
