"""LocalClient: a service of one engine in this process, without sockets; for tests and programs that embed a server."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from kilotron.async_stream import AsyncStream
from kilotron.config import KVMode
from kilotron.coordinator.service_client import OutputStream, join_batches
from kilotron.coordinator.submissions import to_output, to_request
from kilotron.coordinator.wire import (
    ControlAnswer,
    EngineFacts,
    EngineLoad,
    MetricsAnswer,
    ReplicaStatus,
    ServiceStatus,
    Submission,
    Verb,
)
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.engine_thread import EngineThread
from kilotron.errors import LifecycleError, RequestNotFoundError
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import MAX_CHOICES
from kilotron.text_generation_controllers.stream_item import StreamItem


class LocalClient:
    """See `ServiceClient`. Lifecycle verbs are refused: there is nobody else whom the memory could serve.

    Args:
        engine: from now on belongs to this client's thread.
        facts: what a front end is told of it.
    """

    def __init__(self, engine: DynamicInferenceEngine, facts: EngineFacts) -> None:
        self._engine = engine
        self._facts = facts
        self._thread = EngineThread(engine)
        # Far from the numbers that the engine's own intake gives, with room for a request's continuations.
        self._ids = itertools.count(1 << 40, MAX_CHOICES)
        self._running: dict[str, tuple[Submission, InferenceRequest]] = {}
        self._counters: Counter[str] = Counter()

    @property
    def status(self) -> ServiceStatus:
        """See `ServiceClient`."""
        scheduler = self._engine.scheduler
        load = EngineLoad(
            num_steps=scheduler.step,
            num_running=scheduler.num_running,
            num_waiting=len(scheduler.waiting),
            num_blocks_owned=scheduler.allocator.num_owned,
            num_preemptions=scheduler.num_preemptions,
            num_generated_tokens=self._engine.num_tokens_generated,
        )
        replica = ReplicaStatus(incarnation="local", phase="ready", progress=1.0, is_live=True, load=load)
        return ServiceStatus(
            state="running",
            replicas=[replica],
            facts=None,
            num_queued=0,
            num_in_flight=len(self._running),
        )

    @property
    def facts(self) -> EngineFacts | None:
        """See `ServiceClient`."""
        return self._facts

    def submit(self, submission: Submission) -> OutputStream:
        """See `ServiceClient`."""
        request = to_request(submission, next(self._ids), self._facts.vocab_size)
        ids = [choice.request_id for choice in request.choices]

        def cancel(_: Any) -> None:
            for engine_id in ids:
                self._thread.abort(engine_id)
            self._running.pop(submission.request_id, None)

        stream: OutputStream = AsyncStream(submission.request_id, combine=join_batches, cancel=cancel)
        self._running[submission.request_id] = (submission, request)
        self._thread.submit(request, self._listener(submission.request_id, stream, len(ids)), stream.finish)
        return stream

    async def abort_by_id(self, request_id: str, owner: str | None) -> None:
        """See `ServiceClient`."""
        submission, request = self._running.get(request_id, (None, None))
        if submission is None or request is None or owner not in (None, submission.owner):
            raise RequestNotFoundError(f"no request {request_id} of yours is under way")
        for choice in request.choices:
            self._thread.abort(choice.request_id)

    async def control(self, verb: Verb, kv_mode: KVMode = "persist") -> ControlAnswer:
        """See `ServiceClient`."""
        raise LifecycleError(f"{verb} needs a coordinator: start the server with kilotron serve")

    async def read_metrics(self) -> MetricsAnswer:
        """See `ServiceClient`."""
        replica = self.status.replicas[0]
        gauges = {"num_requests_running": replica.load.num_running, "num_requests_waiting": replica.load.num_waiting}
        return MetricsAnswer("", dict(gauges), dict(self._counters), {}, [replica])

    async def read_timeline(self, request_id: str) -> list[dict[str, Any]] | None:
        """See `ServiceClient`."""
        return None

    def count(self, name: str, amount: int = 1) -> None:
        """See `ServiceClient`."""
        self._counters[name] += amount

    async def close(self) -> None:
        """Aborts what runs and gives the engine's memory back. Idempotent."""
        await asyncio.to_thread(self._thread.close)

    def _listener(
        self, request_id: str, stream: OutputStream, num_choices: int
    ) -> Callable[[InferenceRequest, StreamItem], None]:
        """Puts one request's output into its stream; called in the engine's thread."""
        num_left = num_choices

        def listen(request: InferenceRequest, item: StreamItem) -> None:
            nonlocal num_left
            stream.put([to_output(request_id, request, item)])
            if item.finish_reason is not None:
                num_left -= 1
                if num_left == 0:
                    self._running.pop(request_id, None)
                    stream.finish()

        return listen
