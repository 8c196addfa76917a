"""DynamicInferenceEngine: continuous batching. Requests join and leave between steps; each step is six calls.

Synchronous. Several threads may call it: one at a time gets in, and a step serves the requests of all.
"""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from kilotron.config import KVMode
from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.abstract_engine import AbstractEngine
from kilotron.engines.computed_rows import ComputedRows, run_alone
from kilotron.engines.default_parts import default_limits, make_intake
from kilotron.engines.encoder_intake import check_encoder_tokens
from kilotron.engines.interruption import run_uninterrupted
from kilotron.engines.load_figures import EngineCounts, EngineLoadFigures
from kilotron.engines.request_end import FINAL_STATUS, Listener, caused, error_of, finish, last_item, tell
from kilotron.engines.request_intake import Prompt, RequestIntake, spread_params
from kilotron.engines.request_timeline import RequestTimeline
from kilotron.engines.suspend_resume import CacheSuspension
from kilotron.errors import (
    EngineClosedError,
    EngineSuspendedError,
    InvalidRequestError,
    RequestNotFoundError,
    SamplingParamsError,
    StepFailedError,
)
from kilotron.inference_request import InferenceRequest, Status
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import RowPlan, StepPlan, StepResult
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


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
        controller: runs the model and samples.
        context: owns the KV cache and lays out batches.
        scheduler: decides who runs; None makes one with the default limits.
        intake: checks and numbers requests; None makes one that knows the controller's model and tokenizer.
        timeline: takes down what happens to each request.
    """

    def __init__(
        self,
        controller: TextGenerationController,
        context: DynamicInferenceContext,
        *,
        scheduler: Scheduler | None = None,
        intake: RequestIntake | None = None,
        timeline: RequestTimeline | None = None,
    ) -> None:
        self.scheduler = scheduler or Scheduler(default_limits(context), context.shape.num_blocks)
        self.context = context
        self.controller = controller
        self.intake = intake or make_intake(controller, context)
        self.timeline = timeline
        controller.reserve_slots(context.max_requests)
        self._suspension = CacheSuspension(self.scheduler, context.storage)
        self._requests: dict[int, InferenceRequest] = {}
        self._listeners: dict[int, Listener] = {}
        self._closed_because: str | None = None
        self.lock = threading.RLock()
        self.num_tokens_generated = 0
        self._counts = EngineCounts()
        self.step_started: float | None = None
        """When the running step began, by the monotonic clock; None between steps. For a watchdog, without the lock."""

    @property
    def num_unfinished_requests(self) -> int:
        """Requests waiting or running, each of n continuations counted."""
        return len(self._requests)

    def num_requests_done(self) -> float:
        """How much of the running requests is done, in requests, if they take all the tokens they may."""
        running = [item.request for item in self.scheduler.running if item is item.family[0]]
        return sum(request.generated_length / request.max_generated for request in running if request.max_generated)

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._requests)

    @property
    def num_requests_finished(self) -> int:
        """Requests that ended, for whatever reason, each of n continuations counted."""
        return sum(self._counts.finished.copy().values())

    def read_load(self) -> EngineLoadFigures:
        """What was done and what is to do, for metrics. From any thread: it waits for no step."""
        scheduler, counts = self.scheduler, self.scheduler.counts
        allocator = scheduler.allocator
        return EngineLoadFigures(
            num_steps=scheduler.step,
            num_steps_failed=self._counts.steps_failed,
            num_tokens_generated=self.num_tokens_generated,
            num_prompt_tokens_computed=counts.prompt_computed + counts.encoder_computed,
            num_prompt_tokens_cached=counts.prompt_cached + counts.encoder_cached,
            num_prefix_tokens_queried=counts.queried,
            num_prefix_tokens_hit=counts.hit,
            num_preemptions=scheduler.num_preemptions,
            num_requests_finished=self._counts.finished.copy(),
            num_running=scheduler.num_running,
            num_waiting=len(scheduler.waiting),
            num_blocks_owned=allocator.num_owned,
            num_blocks_cached=allocator.cache.num_unowned,
            num_blocks_free=allocator.num_free,
            step_started=self.step_started,
            kv_mode=self._suspension.kv_mode,
        )

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
        check_encoder_tokens(request, self.intake.limits.encoder)
        self.scheduler.check_admissible(request)
        self._start(request.choices)
        for choice in request.choices:
            # Only what can end is registered: whatever is here counts as unfinished.
            self._requests[choice.request_id] = choice
            if listener is not None:
                self._listeners[choice.request_id] = listener
            if self.timeline is not None:
                self.timeline.queue(choice)
        if not _needs_the_model(request):
            for choice in request.choices:
                self._end(choice, "length")
        return request

    @_exclusive
    def step(self) -> list[InferenceRequest]:
        """Runs one step and returns the requests that ended in it.

        A fault of one request ends that request alone, also where it makes the whole step fail; a fault in the
        scheduler ends all there are. The engine goes on after each.

        Raises:
            Exception: what the scheduler failed with, twice in a row; the engine is of no more use and must be closed.
            EngineSuspendedError: rather than doing nothing, so that no loop spins on a suspended engine.
        """
        self._check_open()
        if self._suspension.kv_mode is not None:
            raise EngineSuspendedError(f"the engine is suspended ({self._suspension.kv_mode}); resume it first")
        self.step_started = now = time.monotonic()
        try:
            return self._take_expired(now) + self._run_step(now)
        finally:
            self.step_started = None

    @_exclusive
    def end_expired(self) -> list[InferenceRequest]:
        """Ends the requests past their deadline, as each step does; for when no step is run."""
        return self._take_expired(time.monotonic())

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

    @_exclusive
    def abort_all(self) -> list[InferenceRequest]:
        """Ends every request now, as `abort` does, and returns them."""
        unfinished = list(self._requests.values())
        self._abort_unfinished(unfinished)
        return unfinished

    @_exclusive
    def suspend(self, kv_mode: KVMode) -> int:
        """Stops running steps and gives memory of the KV cache back; returns how many bytes. Repeats change nothing.

        Requests may still come, be aborted and run out of time. Resumed, all go on with the tokens they would have
        had without this.

        Args:
            kv_mode: "persist" frees nothing; "offload" moves what the cache holds to the host, on a CPU into an
                unlinked file in TMPDIR; "recompute" drops it, and running requests wait to be computed again.

        Raises:
            ConfigError: there is no such mode.
            SuspendFailedError: there is no room on the host; the engine goes on unchanged.
        """
        self._check_open()
        stopped = [item.request for item in self.scheduler.running if item is item.family[0]]
        num_bytes = self._suspension.suspend(kv_mode)
        if self.timeline is not None and stopped and not self.scheduler.running:
            self.timeline.preempt(stopped, "suspended", time.monotonic())
        return num_bytes

    @_exclusive
    def resume(self) -> None:
        """Takes the KV cache into use again, so that steps can run. Nothing if it is in use.

        Raises:
            SuspendFailedError: there is no memory for it; the engine stays suspended.
        """
        self._check_open()
        self._suspension.resume()

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
        params = spread_params(sampling_params, prompts)
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
        request.sampling_params.add_attributes({"streaming": True})
        return request

    @_exclusive
    def close(self, reason: str = "it was shut down") -> None:
        """Ends all requests, whatever state the engine is in, and gives the KV cache back. Idempotent."""
        if self._closed_because is not None:
            return
        self._closed_because = reason
        for request in list(self._requests.values()):
            if request.request_id not in self._requests:  # a listener has aborted it
                continue
            request.error = EngineClosedError(
                f"request {request.request_id} was aborted: the engine is closed: {reason}"
            )
            try:
                self.scheduler.abort(request.request_id)
            except Exception:
                _log.exception("request %d: the scheduler could not let go of it", request.request_id)
            self._end(request, "abort")
        self._suspension.close()
        self.context.close()

    def _start(self, choices: Sequence[InferenceRequest]) -> None:
        """Lets controller and scheduler know of all choices, or of none."""
        started = []
        try:
            for choice in choices:
                self.controller.start_request(choice)
                started.append(choice)
            if _needs_the_model(choices[0]):
                for choice in choices:
                    self.scheduler.add_request(choice)
        except BaseException:
            for choice in started:
                self.scheduler.abort(choice.request_id)
                self.controller.end_request(choice.request_id)
            raise

    def _take_expired(self, now: float) -> list[InferenceRequest]:
        return [self._end(request, "deadline") for request in self.scheduler.take_expired(now)]

    def _run_step(self, now: float) -> list[InferenceRequest]:
        try:
            plan = self.scheduler.plan_step(now)
        except Exception as error:
            return self._fail_everything(error)
        if plan is None:
            return []
        if self.timeline is not None:
            self.timeline.begin_step(plan, self._requests, now)
        plan, result, errors = self._compute(plan)
        ended = self._update_generation_status(plan, result)
        try:
            moves = self.controller.take_beam_moves()
            self.scheduler.resolve_step(plan, result, {request.request_id for request in ended}, moves)
        except Exception as error:
            return self._fail_everything(error)
        self._counts.scheduler_faults_in_a_row = 0
        self.num_tokens_generated += len(result.token_ids) + sum(map(len, moves.values()))
        for request in ended:
            self._end(request)
        if errors:
            ended += self._fail_all(errors)
        self._publish(plan)
        return ended

    def _compute(self, plan: StepPlan) -> ComputedRows:
        """Runs the model on a plan; if that fails, on each row alone. The scheduler forgets those that fail then."""
        try:
            batch = self.context.prepare_batch(plan)
            return ComputedRows(plan, self.controller.generate_step(plan, batch), {})
        except Exception as error:
            self._counts.steps_failed += 1
            computed = run_alone(plan, error, self.scheduler, self.context, self.controller)
            for request_id in computed.errors:
                self.scheduler.abort(request_id)
            return computed

    def _update_generation_status(self, plan: StepPlan, result: StepResult) -> list[InferenceRequest]:
        """Gives each request its new token and returns those that ended; one that cannot take it ends alone."""
        ended = []
        tokens = iter(result.token_ids)
        update = self.controller.update_generation_status
        for row in plan.rows:
            token_id = next(tokens) if row.samples else None
            try:
                request = update(row, token_id, result)
            except Exception as error:
                request = self._fail_row(row, error)
            if request is not None:
                ended.append(request)
        return ended

    def _fail_row(self, row: RowPlan, cause: Exception) -> InferenceRequest:
        """A request could not take its token: it fails, the step's other rows go on."""
        _log.error("request %d could not take its token", row.request_id, exc_info=cause)
        progress = self.controller.progress_of(row.request_id)
        message = f"request {row.request_id}: its output could not be made: {type(cause).__name__}: {cause}"
        finish(progress, "error", caused(StepFailedError(message), cause))
        return progress.request

    def _fail_everything(self, cause: Exception) -> list[InferenceRequest]:
        """The scheduler failed, a fault of ours: nobody knows what its books are worth, so that all requests fail and
        it starts anew. If that does not help, the fault is raised: an engine that can do nothing must not look alive.
        """
        self._counts.steps_failed += 1
        self._counts.scheduler_faults_in_a_row += 1
        if self._counts.scheduler_faults_in_a_row > 1:
            raise cause
        _log.error("step %d could not be planned or resolved", self.scheduler.step, exc_info=cause)
        self.scheduler.reset()
        return self._fail_all(dict.fromkeys(self._requests, cause))

    def _fail_all(self, errors: Mapping[int, Exception]) -> list[InferenceRequest]:
        """Ends requests with what they failed with, but for those that a listener aborts meanwhile."""
        return [
            self._fail(self._requests[request_id], cause)
            for request_id, cause in errors.items()
            if request_id in self._requests
        ]

    def _fail(self, request: InferenceRequest, cause: Exception) -> InferenceRequest:
        if request.finish_reason is not None:  # it had just ended
            return self._end(request)
        message = f"request {request.request_id}: a step failed with {type(cause).__name__}: {cause}"
        request.error = caused(StepFailedError(message), cause)
        return self._end(request, "error")

    def _publish(self, plan: StepPlan) -> None:
        """Hands new output to whoever listens; a request's last piece comes when it ends."""
        if not self._listeners:
            return
        for row in plan.rows:
            listener = self._listeners.get(row.request_id)
            if listener is None or not row.samples:
                continue
            progress = self.controller.progress_of(row.request_id)
            if progress.request.finish_reason is not None:
                continue
            try:
                item = progress.take_item()
            except Exception as error:
                self.scheduler.abort(row.request_id)
                self._fail(progress.request, error)
                continue
            if item is not None and not tell(listener, progress.request, item):
                self._listeners.pop(row.request_id, None)
                self.abort(row.request_id)

    def _end(self, request: InferenceRequest, reason: str | None = None) -> InferenceRequest:
        """The one place where a request ends, for whatever reason."""
        progress = self.controller.end_request(request.request_id)
        if reason is not None:
            finish(progress, reason, request.error or error_of(request, reason))
        if not request.sampling_params.return_prompt_tokens:
            request.prompt_tokens, request.encoder_tokens = [], []
        request.timings.finished = time.monotonic()
        request.status = FINAL_STATUS.get(request.finish_reason or "", Status.COMPLETED)
        self._counts.finish(request.finish_reason or "error")
        if self.timeline is not None:
            self.timeline.finish(request)
        del self._requests[request.request_id]
        listener = self._listeners.pop(request.request_id, None)
        if listener is not None:
            tell(listener, request, last_item(progress))
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
