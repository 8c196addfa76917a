"""Admission: whether a coordinator takes a request in, and if not, why and when to come back."""

from kilotron.coordinator.coordinator_config import CoordinatorConfig
from kilotron.coordinator.core.ended_requests import EndedRequests
from kilotron.coordinator.core.lifecycle import Lifecycle
from kilotron.coordinator.core.replicas import ReplicaTable
from kilotron.coordinator.core.request_ledger import RequestLedger, beam_width_of
from kilotron.coordinator.core.routing import Router
from kilotron.coordinator.core.service_metrics import ServiceMetrics
from kilotron.coordinator.wire import Submission
from kilotron.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    InvalidRequestError,
    ServiceUnavailableError,
)
from kilotron.sampling_params import MAX_BEAM_WIDTH, MAX_CHOICES

_MOST_ID_CHARS = 64
# The queue may hold this many times what the KV caches do, unless an option says otherwise.
_QUEUED_CACHES = 8
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0


class Admission:
    """The checks in front of the ledger."""

    def __init__(
        self,
        config: CoordinatorConfig,
        lifecycle: Lifecycle,
        replicas: ReplicaTable,
        router: Router,
        ledger: RequestLedger,
        metrics: ServiceMetrics,
        ended: EndedRequests,
    ) -> None:
        self._max_queued_tokens = config.max_queued_tokens
        self._lifecycle = lifecycle
        self._replicas = replicas
        self._router = router
        self._ledger = ledger
        self._metrics = metrics
        self._ended = ended

    def check(self, submission: Submission, now: float) -> tuple[int, int]:
        """-> number of continuations and priority of a request that may be taken in.

        Raises:
            InvalidRequestError: it is not as clients make them.
            ServiceUnavailableError: nobody can run it now.
            DuplicateRequestError: it is known already.
            QuotaExceededError: its owner has too many under way.
            DeadlineExceededError: its time is over.
            QueueFullError: it would have to wait, and too much waits already.
        """
        num_choices, priority = _read(submission)
        self._check_service(now)
        self._ledger.check_identity(submission)
        if self._ended.replica_of(submission.request_id) is not None:
            raise DuplicateRequestError(f"a request {submission.request_id} has been run; draw a new id")
        if submission.timeout_s is not None and not submission.timeout_s > 0:
            raise DeadlineExceededError("the deadline passed before the request was taken in")
        if not self._can_start(num_choices * beam_width_of(submission)):
            self._check_queue(submission)
        return num_choices, priority

    def _check_service(self, now: float) -> None:
        if self._lifecycle.state == "suspended":
            raise ServiceUnavailableError("the service is suspended", _LONGEST_RETRY_S)
        if not any(replica.is_joined and self._replicas.is_live(replica, now) for replica in self._replicas):
            raise ServiceUnavailableError("no engine is ready", self._replicas.seconds_to_ready(now))

    def _can_start(self, num_sequences: int) -> bool:
        is_open = self._lifecycle.state == "running" and not self._ledger.num_queued
        return is_open and self._router.has_room(num_sequences)

    def _check_queue(self, submission: Submission) -> None:
        limit = self._max_queued_tokens
        if limit is None:
            limit = _QUEUED_CACHES * self._router.num_cached_tokens_possible
        seconds = self._metrics.seconds_for(self._ledger.num_queued_tokens)
        retry_after_s = min(max(seconds, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        self._ledger.check_queue(submission.num_input_tokens, limit, retry_after_s)


def _read(submission: Submission) -> tuple[int, int]:
    if not 0 < len(submission.request_id) <= _MOST_ID_CHARS:
        raise InvalidRequestError(f"a request id has 1 to {_MOST_ID_CHARS} characters")
    if not submission.prompt_tokens:
        raise InvalidRequestError("a submission without prompt tokens")
    num_choices, priority = submission.params.get("n", 1), submission.params.get("priority", 0)
    ranges = (
        ("n", num_choices, 1, MAX_CHOICES),
        ("beam_width", beam_width_of(submission), 1, MAX_BEAM_WIDTH),
        ("priority", priority, -(1 << 31), 1 << 31),
    )
    for name, value, low, high in ranges:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidRequestError(f"{name} must be a whole number in [{low}, {high}]")
    return num_choices, priority
