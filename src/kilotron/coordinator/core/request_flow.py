"""RequestFlow: a request's way through the coordinator, from submission to its one end, whatever dies in between.

Knows replicas by incarnation and clients by address; who they are was checked before.
"""

import msgspec

from kilotron.coordinator.core.admission import Admission
from kilotron.coordinator.core.ended_requests import EndedRequests
from kilotron.coordinator.core.lifecycle import Lifecycle
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.replicas import Replica, ReplicaTable
from kilotron.coordinator.core.request_ledger import RequestLedger, TrackedRequest
from kilotron.coordinator.core.routing import Router
from kilotron.coordinator.core.service_metrics import ServiceMetrics
from kilotron.coordinator.request_errors import to_wire
from kilotron.coordinator.wire import (
    Abort,
    ClientOutput,
    EngineOutput,
    EngineRefusal,
    Failure,
    Output,
    Submission,
    Work,
)
from kilotron.errors import (
    DeadlineExceededError,
    EngineDiedError,
    KilotronError,
    RequestAbortedError,
    RequestNotFoundError,
    ServiceUnavailableError,
)

# What a request is thought to generate before any has ended.
_EXPECTED_TOKENS = 256
_MOST_ATTEMPTS = 2


class RequestFlow:
    """Moves requests between clients, queue and replicas."""

    def __init__(
        self,
        admission: Admission,
        lifecycle: Lifecycle,
        replicas: ReplicaTable,
        router: Router,
        ledger: RequestLedger,
        metrics: ServiceMetrics,
        ended: EndedRequests,
        outbox: Outbox,
    ) -> None:
        self._admission = admission
        self._lifecycle = lifecycle
        self._replicas = replicas
        self._router = router
        self._ledger = ledger
        self._metrics = metrics
        self._ended = ended
        self._outbox = outbox

    def submit(self, client: bytes, submission: Submission, now: float) -> None:
        """A client's request: runs, waits, or is refused."""
        try:
            num_choices, priority = self._admission.check(submission, now)
        except KilotronError as error:
            refusal = to_wire(error)
            self._metrics.refused(refusal)
            self._ended.told(client, submission.request_id)
            self._outbox.send(client, Failure(submission.request_id, refusal))
            return
        self._ledger.add(submission, client, now, num_choices, priority)
        self.dispatch(now)

    def dispatch(self, now: float) -> None:
        """Gives replicas what they have credit for, in the order of the queue."""
        self.expire(now)
        while self._lifecycle.state == "running" and (request := self._ledger.first_queued()) is not None:
            replica = self._choose(request)
            if replica is not None:
                self._start(request, replica, now)
            elif request.lost_on and self._router.has_room(request.num_sequences):
                # It may not go where there is room, and must not hold up those behind it.
                self._fail(request, EngineDiedError("the request was lost, and no other engine has room for it"))
            else:
                return

    def expire(self, now: float) -> None:
        """Ends queued requests whose deadline has passed; replicas look after the others."""
        for request in self._ledger.expired(now):
            self._fail(request, DeadlineExceededError("the deadline passed while the request waited for an engine"))

    def take_output(self, replica: Replica, message: EngineOutput, now: float) -> None:
        """What a step gave: to each client its part in one message."""
        if message.block_events:
            self._router.take_block_events(replica.incarnation, message.block_events)
        batches: dict[bytes, list[Output]] = {}
        for output in message.outputs:
            request = self._ledger.get(output.request_id)
            if request is None or request.replica != replica.incarnation:
                self._metrics.count("late_outputs")
                continue
            if not self._is_next(request, output, now):
                continue
            batch = batches.get(request.client)
            if batch is None:
                batch = batches[request.client] = []
                # Sent before its contents are complete: news of a request's end must not overtake its output.
                self._outbox.send(request.client, ClientOutput(batch))
            batch.append(output)
            self._forwarded(request, output, now)

    def take_refusal(self, replica: Replica, refusal: EngineRefusal) -> None:
        """The replica could not take a request in."""
        request = self._ledger.get(refusal.request_id)
        if request is None or request.replica != replica.incarnation:
            self._metrics.count("late_outputs")
            return
        self._metrics.failed(refusal.error)
        self._outbox.send(request.client, Failure(request.request_id, refusal.error))
        self._end(request)

    def abort(self, client: bytes, request_id: str) -> bool:
        """A client wants its request no more; too late is no error -> whether it may ask for that."""
        request = self._ledger.get(request_id)
        if request is None:
            return True
        if request.client != client:
            return False
        self.drop(request)
        return True

    def abort_by_id(self, request_id: str, owner: str | None) -> None:
        """Ends an owner's request, or anybody's (None), and tells its client.

        Raises:
            RequestNotFoundError: no such request is under way, or it is somebody else's.
        """
        request = self._ledger.get(request_id)
        if request is None or owner not in (None, request.submission.owner):
            raise RequestNotFoundError(f"no request {request_id[:64]} of yours is under way")
        self._abort_at_replica(request)
        self._fail(request, RequestAbortedError("the request was aborted by its id"))

    def client_left(self, client: bytes) -> None:
        """Nobody is left to read what this client asked for."""
        for request in self._ledger.of_client(client):
            self.drop(request)
        self._ended.forget(client)

    def replica_left(self, incarnation: str, why: str, now: float) -> None:
        """A replica died, and was fenced: its requests start again elsewhere if nobody has seen any output."""
        requests = self._ledger.of_replica(incarnation)
        self._router.remove(incarnation)
        for request in requests:
            request.num_deaths += 1
            self._retry_or_fail(request, f"the engine that ran the request died: {why}", now, has_replica=False)
        if not self._replicas.has_joined:
            wait_s = self._replicas.seconds_to_ready(now)
            for request in self._ledger.queued:
                self._fail(request, ServiceUnavailableError("no engine is left to run the request", wait_s))

    def replica_restarted(self, incarnation: str, now: float) -> None:
        """A replica said Hello again, and therefore holds nothing any more."""
        self._router.remove(incarnation)
        for request in self._ledger.of_replica(incarnation):
            self._retry_or_fail(request, "the engine's connection was lost", now, has_replica=True)

    def lose(self, request: TrackedRequest, why: str, now: float) -> None:
        """Its replica lives, but a message about this request was lost."""
        self._metrics.count("requests_lost")
        self._abort_at_replica(request)
        if request.replica is not None:
            request.lost_on.add(request.replica)
        self._retry_or_fail(request, why, now, has_replica=False)

    def drop(self, request: TrackedRequest) -> None:
        """Its client does not want it, or does not know it, any more."""
        self._metrics.count("request_success/abort")
        self._abort_at_replica(request)
        self._end(request)

    def _choose(self, request: TrackedRequest) -> str | None:
        submission = request.submission
        return self._router.choose(
            request.num_sequences, submission.num_input_tokens, submission.block_hashes, request.lost_on
        )

    def _start(self, request: TrackedRequest, replica: str, now: float) -> None:
        submission = request.submission
        peer = self._replicas.get(replica)
        if peer is None or peer.engine_peer is None:
            self._router.remove(replica)
            return
        expected = min(submission.max_generated, int(self._metrics.mean_generation_tokens) or _EXPECTED_TOKENS)
        request.num_outstanding = submission.num_input_tokens + request.num_sequences * expected
        self._router.take(replica, request.num_sequences, request.num_outstanding)
        self._ledger.assign(request, replica, now)
        self._ended.ran_on(request.request_id, replica)
        timeout_s = None if submission.timeout_s is None else request.deadline - now
        work = msgspec.structs.replace(submission, timeout_s=timeout_s, block_hashes=[])
        self._outbox.send(peer.engine_peer, Work(work))

    def _is_next(self, request: TrackedRequest, output: Output, now: float) -> bool:
        """Whether a piece of output follows the last one; if some is missing, the request is lost there."""
        choice = output.choice
        if not 0 <= choice < request.num_choices or request.num_forwarded[choice] < 0:
            self._metrics.count("protocol_errors")
            return False
        if output.offset != request.num_forwarded[choice]:
            self.lose(request, "a part of the output was lost on its way from the engine", now)
            return False
        return True

    def _forwarded(self, request: TrackedRequest, output: Output, now: float) -> None:
        self._metrics.forwarded(request, output, now)
        num_done = len(output.token_ids)
        if num_done:
            request.num_forwarded[output.choice] += num_done
            request.last_outputs[output.choice] = now
        if not request.is_started:
            request.is_started = True
            num_done += request.num_prompt_tokens
        num_done = min(num_done, request.num_outstanding)
        if num_done and request.replica is not None:
            request.num_outstanding -= num_done
            self._router.progress(request.replica, num_done)
        if output.finish is not None:
            request.num_forwarded[output.choice] = -1
            request.num_left -= 1
            if request.num_left == 0:
                self._metrics.request_ended(request, output.finish, now)
                self._end(request)

    def _retry_or_fail(self, request: TrackedRequest, why: str, now: float, *, has_replica: bool) -> None:
        """Once more from the front of the queue, if that can be hidden from the client and there is hope."""
        error = self._reason_to_give_up(request, why, now, has_replica=has_replica)
        if error is not None:
            self._fail(request, error)
            return
        self._metrics.count("request_retries")
        self._give_back(request)
        self._ledger.requeue(request)

    def _reason_to_give_up(
        self, request: TrackedRequest, why: str, now: float, *, has_replica: bool
    ) -> KilotronError | None:
        if request.num_deaths >= _MOST_ATTEMPTS:
            message = f"{request.num_deaths} engines died while they ran this request; it is not tried again"
            return EngineDiedError(message, is_retryable=False)
        if request.deadline <= now:
            return DeadlineExceededError("the deadline passed before the request finished")
        others = (replica for replica in self._replicas if replica.is_joined)
        is_hopeless = not has_replica and all(replica.incarnation in request.lost_on for replica in others)
        if request.is_started or request.num_attempts >= _MOST_ATTEMPTS or is_hopeless:
            return EngineDiedError(why)
        return None

    def _fail(self, request: TrackedRequest, error: KilotronError) -> None:
        failure = to_wire(error)
        self._metrics.failed(failure)
        self._outbox.send(request.client, Failure(request.request_id, failure))
        self._end(request)

    def _abort_at_replica(self, request: TrackedRequest) -> None:
        replica = None if request.replica is None else self._replicas.get(request.replica)
        if replica is not None and replica.engine_peer is not None:
            self._outbox.send(replica.engine_peer, Abort(request.request_id))

    def _give_back(self, request: TrackedRequest) -> None:
        if request.replica is not None:
            self._router.give_back(request.replica, request.num_sequences, request.num_outstanding)
            request.num_outstanding = 0

    def _end(self, request: TrackedRequest) -> None:
        self._give_back(request)
        self._ledger.end(request)
        self._ended.told(request.client, request.request_id)
