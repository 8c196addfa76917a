"""DynamicInferenceEngine: continuous batching. Requests join and leave between steps; each step is six calls.

Synchronous. Several threads may call it: one at a time gets in, and a step serves the requests of all.
"""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.abstract_engine import AbstractEngine
from kilotron.engines.interruption import run_uninterrupted
from kilotron.engines.request_intake import Prompt, RequestIntake, spread_params
from kilotron.errors import (
    DeadlineExceededError,
    EngineClosedError,
    InvalidRequestError,
    KilotronError,
    RequestAbortedError,
    RequestNotFoundError,
    SamplingParamsError,
    StepFailedError,
)
from kilotron.inference_request import InferenceRequest, Status
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import StepPlan
from kilotron.text_generation_controllers.generation_progress import GenerationProgress
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController

_log = logging.getLogger(__name__)

# Called in the engine's thread with each new piece of a request's output, the last one with a finish reason.
Listener = Callable[[InferenceRequest, StreamItem], None]

P = ParamSpec("P")
R = TypeVar("R")

_FINAL_STATUS = {"error": Status.FAILED, "abort": Status.CANCELLED, "deadline": Status.CANCELLED}


def _exclusive(
    method: Callable[Concatenate["DynamicInferenceEngine", P], R],
) -> Callable[Concatenate["DynamicInferenceEngine", P], R]:
    """One thread at a time; a listener may call back into the engine from within."""

    @functools.wraps(method)
    def run(engine: "DynamicInferenceEngine", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with engine.lock:
            return method(engine, *args, **kwargs)

    return run


class DynamicInferenceEngine(AbstractEngine):
    """One replica's engine.

    Args:
        scheduler: decides who runs.
        context: owns the KV cache and lays out batches.
        controller: runs the model and samples.
        intake: checks and numbers requests.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        context: DynamicInferenceContext,
        controller: TextGenerationController,
        intake: RequestIntake,
    ) -> None:
        self.scheduler = scheduler
        self.context = context
        self.controller = controller
        self.intake = intake
        self._requests: dict[int, InferenceRequest] = {}
        self._listeners: dict[int, Listener] = {}
        self._closed_because: str | None = None
        self.lock = threading.RLock()
        self.num_tokens_generated = 0
        self.num_requests_finished = 0

    @property
    def num_unfinished_requests(self) -> int:
        """Requests waiting or running, each of n continuations counted."""
        return len(self._requests)

    def num_requests_done(self) -> float:
        """How much of the running requests is done, in requests, if they take all the tokens they may."""
        running = [item.request for item in self.scheduler.running]
        return sum(request.generated_length / request.max_generated for request in running if request.max_generated)

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._requests)

    @_exclusive
    def add_request(
        self,
        prompt: Prompt | InferenceRequest,
        sampling_params: SamplingParams | None = None,
        *,
        listener: Listener | None = None,
    ) -> InferenceRequest:
        """Checks a request and puts it (and its n - 1 siblings) in the queue.

        Args:
            prompt: text, token ids, or a request that `intake.build` made.
            sampling_params: for text and ids.
            listener: called with each new piece of output; asks for `streaming=True` to get them early.

        Raises:
            InvalidRequestError: the request is wrong or can never run.
            QueueFullError: too many wait.
            EngineClosedError: the engine was shut down.
        """
        self._check_open()
        request = prompt if isinstance(prompt, InferenceRequest) else self.intake.build(prompt, sampling_params)
        if request.status != Status.WAITING_IN_QUEUE or request.request_id in self._requests:
            raise InvalidRequestError(f"request {request.request_id} was added before; build a new one")
        self.scheduler.check_admissible(request)
        for choice in request.choices:
            self.controller.start_request(choice)
            if _needs_the_model(choice):
                self.scheduler.add_request(choice)
            # Only what can end is registered: whatever is here counts as unfinished.
            self._requests[choice.request_id] = choice
            if listener is not None:
                self._listeners[choice.request_id] = listener
            if not _needs_the_model(choice):
                self._end(choice, "length")
        return request

    @_exclusive
    def step(self) -> list[InferenceRequest]:
        """Runs one step and returns the requests that ended in it."""
        self._check_open()
        now = time.monotonic()
        expired = [self._end(request, "deadline") for request in self.scheduler.take_expired(now)]
        plan = self.scheduler.plan_step(now)
        if plan is None:
            return expired
        try:
            batch = self.context.prepare_batch(plan)
            result = self.controller.generate_step(plan, batch)
            ended = self.controller.update_generation_status(plan, result)
        except Exception as error:
            return expired + self._fail_step(plan, error)
        self.scheduler.resolve_step(plan, result, {request.request_id for request in ended})
        self.num_tokens_generated += len(result.token_ids)
        for request in ended:
            self._end(request)
        self._publish(plan)
        return expired + ended

    @_exclusive
    def abort(self, request_id: int) -> None:
        """Ends a request now, whatever it is doing; what it generated so far stays readable.

        Raises:
            RequestNotFoundError: it ended before, or never was.
        """
        request = self._requests.get(request_id)
        if request is None or request.finish_reason is not None:
            raise RequestNotFoundError(f"request {request_id} is not running or waiting; it ended, or never was")
        self.scheduler.abort(request_id)
        self._end(request, "abort")

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_step: Callable[[], None] | None = None,
    ) -> list[InferenceRequest]:
        """Generates for all prompts together and returns one request per prompt, in order.

        Every prompt is checked before the first is started. A request that fails while running is returned with
        status FAILED and its `error`. Interrupting aborts what is left.

        Args:
            prompts: texts or token ids, mixed as you like.
            sampling_params: one for all, or one per prompt.
            on_step: called after each step, for a progress display.

        Raises:
            InvalidRequestError: a prompt is wrong; nothing was started.
        """
        self._check_open()
        requests = self.build_all(prompts, sampling_params)
        try:
            for request in requests:
                self.add_request(request)
            left = [choice for request in requests for choice in request.choices]
            while left:
                if left[-1].is_finished:
                    left.pop()
                    continue
                run_uninterrupted(self.step)
                if on_step is not None:
                    on_step()
        finally:
            self._abort_unfinished(requests)
        return requests

    def generate_stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[StreamItem]:
        """Yields one request's output as it grows; leaving early aborts it.

        Raises:
            InvalidRequestError: the prompt is wrong, or n is above 1.
            KilotronError: the request failed.
        """
        self._check_open()
        request = self.build_streaming(prompt, sampling_params)
        items: deque[StreamItem] = deque()
        self.add_request(request, listener=lambda _, item: items.append(item))
        try:
            while items or not request.is_finished:
                if not items:
                    run_uninterrupted(self.step)
                while items:
                    yield items.popleft()
            if request.error is not None:
                raise request.error
        finally:
            self._abort_unfinished([request])

    def build_all(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[InferenceRequest]:
        """Checks all prompts, starting none.

        Raises:
            InvalidRequestError: a prompt is wrong, or the numbers of prompts and params differ.
        """
        params = spread_params(sampling_params, len(prompts))
        requests = [self.intake.build(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        for request in requests:
            self.scheduler.check_admissible(request)
        return requests

    def build_streaming(self, prompt: Prompt, sampling_params: SamplingParams | None) -> InferenceRequest:
        """Checks a prompt whose single continuation is read as it grows."""
        params = sampling_params or SamplingParams()
        if isinstance(params, SamplingParams) and params.n != 1:
            raise SamplingParamsError(f"a stream has one continuation, not n={params.n}; start one stream for each")
        request = self.intake.build(prompt, params)
        request.sampling_params.streaming = True
        return request

    @_exclusive
    def close(self, reason: str = "it was shut down") -> None:
        """Ends all requests, whatever state the engine is in, and gives the KV cache back. Idempotent."""
        if self._closed_because is not None:
            return
        self._closed_because = reason
        for request in list(self._requests.values()):
            request.error = EngineClosedError(
                f"request {request.request_id} was aborted: the engine is closed: {reason}"
            )
            try:
                self.scheduler.abort(request.request_id)
            except Exception:
                _log.exception("request %d: the scheduler could not let go of it", request.request_id)
            self._end(request, "abort")
        self.context.close()

    def _fail_step(self, plan: StepPlan, cause: Exception) -> list[InferenceRequest]:
        """A step raised: the requests it ran fail, the waiting ones and the engine go on."""
        if not plan.rows:
            raise cause
        _log.error("step %d failed with %d rows", plan.step, len(plan.rows), exc_info=cause)
        failed = []
        for row in plan.rows:
            request = self._requests[row.request_id]
            self.scheduler.abort(row.request_id)
            request.error = StepFailedError(
                f"request {request.request_id}: a step failed with {type(cause).__name__}: {cause}"
            )
            request.error.__cause__ = cause
            failed.append(self._end(request, "error"))
        return failed

    def _publish(self, plan: StepPlan) -> None:
        """Hands new output to whoever listens; a request's last piece comes when it ends."""
        if not self._listeners:
            return
        for row in plan.rows:
            listener = self._listeners.get(row.request_id)
            if listener is not None and row.samples:
                progress = self.controller.progress_of(row.request_id)
                if progress.request.finish_reason is None and not _give(listener, progress):
                    self._listeners.pop(row.request_id, None)
                    self.abort(row.request_id)

    def _end(self, request: InferenceRequest, reason: str | None = None) -> InferenceRequest:
        """The one place where a request ends, for whatever reason."""
        progress = self.controller.end_request(request.request_id)
        if reason is not None:
            _finish(progress, reason, request.error or _error_of(request, reason))
        if not request.sampling_params.return_prompt_tokens:
            request.prompt_tokens = []
        request.timings.finished = time.monotonic()
        request.status = _FINAL_STATUS.get(request.finish_reason or "", Status.COMPLETED)
        self.num_requests_finished += 1
        del self._requests[request.request_id]
        listener = self._listeners.pop(request.request_id, None)
        if listener is not None:
            _give(listener, progress)
        return request

    @_exclusive
    def _abort_unfinished(self, requests: Sequence[InferenceRequest]) -> None:
        for request in requests:
            for choice in request.choices:
                if choice.request_id in self._requests:
                    self.abort(choice.request_id)

    def _check_open(self) -> None:
        if self._closed_because is not None:
            raise EngineClosedError(f"the engine is closed: {self._closed_because}; build a new one")


def _needs_the_model(request: InferenceRequest) -> bool:
    return request.max_generated > 0 or request.sampling_params.wants_prompt_log_probs


def _error_of(request: InferenceRequest, reason: str) -> KilotronError | None:
    if reason == "abort":
        return RequestAbortedError(f"request {request.request_id} was aborted")
    if reason == "deadline":
        return DeadlineExceededError(f"request {request.request_id} did not finish before its deadline")
    return None


def _finish(progress: GenerationProgress, reason: str, error: KilotronError | None) -> None:
    """A request ends even if its text cannot be completed."""
    try:
        progress.finish(reason, error)
    except Exception as cause:
        request = progress.request
        _log.exception("request %d: its text could not be completed", request.request_id)
        if request.error is None:
            request.finish_reason = "error"
            request.error = StepFailedError(f"request {request.request_id}: its text could not be completed: {cause}")


def _give(listener: Listener, progress: GenerationProgress) -> bool:
    """Hands over what is new; False when the listener failed, which must not hurt other requests."""
    item = progress.take_item()
    if item is None:
        return True
    try:
        listener(progress.request, item)
    except Exception:
        _log.exception("request %d: its listener failed", progress.request.request_id)
        return False
    return True
