"""EngineWorker: runs one engine replica for a coordinator. One thread: take messages in, step, send what the step gave.

All output of a step goes out in one message. Whatever a message holds, only the request it is about can fail by it.
Knows nothing of how the engine was built, or of other replicas.
"""

import itertools
import logging
import time
from dataclasses import dataclass

from kilotron.coordinator.block_events import BlockEventLog
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.pulse_sender import ReplicaState, new_incarnation
from kilotron.coordinator.request_errors import to_wire
from kilotron.coordinator.sockets import DealerSocket
from kilotron.coordinator.submissions import to_output, to_request
from kilotron.coordinator.wire import (
    ENGINE_DECODER,
    PROTOCOL_VERSION,
    Abort,
    EngineFacts,
    EngineLoad,
    EngineOutput,
    EngineRefusal,
    EngineVerb,
    Farewell,
    Finish,
    Hello,
    Join,
    Message,
    Output,
    Submission,
    TimelineAnswer,
    TimelineQuery,
    Unwelcome,
    VerbDone,
    Welcome,
    Work,
    encode,
)
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.load_figures import EngineLoadFigures
from kilotron.engines.request_end import Listener
from kilotron.engines.request_timeline import RequestTimeline
from kilotron.errors import (
    KilotronError,
    LifecycleError,
    ProtocolError,
    RequestNotFoundError,
    StepFailedError,
)
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import MAX_CHOICES
from kilotron.text_generation_controllers.stream_item import StreamItem

_log = logging.getLogger(__name__)

# How long the loop sleeps when there is nothing to do; deadlines of waiting requests are looked at in between.
_IDLE_WAIT_S = 0.05
# How long a message may wait for a coordinator that is there but does not read.
_SEND_PATIENCE_S = 5.0
_HELLO_PERIOD_S = 0.5
_MOST_TIMELINES = 1024
_LAST_WORD_MS = 200


@dataclass(slots=True)
class _Held:
    """A request under way."""

    request: InferenceRequest
    num_left: int
    """Continuations that have not ended."""


class EngineWorker:
    """A replica at work.

    Args:
        credentials: of the service.
        engine: belongs to the thread that calls `run`.
        facts: what the coordinator is told of it.
        state: shared with the replica's pulse, which must be sending already.
    """

    def __init__(
        self, credentials: Credentials, engine: DynamicInferenceEngine, facts: EngineFacts, state: ReplicaState
    ) -> None:
        self._credentials = credentials
        self._engine = engine
        self._facts = facts
        self._state = state
        self._socket = DealerSocket(credentials)
        self._held: dict[str, _Held] = {}
        # Far from the numbers that the engine's own intake gives, with room for a request's continuations.
        self._ids = itertools.count(1 << 40, MAX_CHOICES)
        self._outputs: list[Output] = []
        self._joined_to: str | None = None
        self._next_hello = 0.0
        self._is_paused = False
        self._is_stopping = False
        self._block_events = BlockEventLog(facts.block_size)
        if facts.enable_prefix_caching:
            engine.scheduler.allocator.cache.on_event = self._block_events.put
        self._timeline = engine.timeline = RequestTimeline()
        # The last requests' ids in the engine, oldest first.
        self._engine_ids: dict[str, int] = {}
        state.read_load = lambda: _load_of(engine.read_load())
        state.read_held_ids = lambda: list(self._held)

    def run(self) -> None:
        """Works until `stop`.

        Raises:
            ProtocolError: the coordinator refuses this replica for good; says why.
        """
        self._state.phase, self._state.progress = "ready", 1.0
        try:
            while not self._is_stopping:
                self._keep_joined()
                self._take_messages()
                if self._engine.has_unfinished_requests and not self._is_paused:
                    self._engine.step()
                else:
                    self._engine.end_expired()
                    self._socket.wait(_IDLE_WAIT_S)
                self._send_outputs()
        finally:
            self._socket.send(
                encode(Farewell())
            )  # first: giving memory back takes a while, which must not look like death
            self._engine.close()
            self._socket.close(linger_ms=_LAST_WORD_MS)

    def stop(self) -> None:
        """Ends `run` after the running step; safe from any thread and from signal handlers."""
        self._is_stopping = True

    def _keep_joined(self) -> None:
        """Says Hello at first, to every new coordinator, and as somebody new after having been given up."""
        if self._state.refusal is not None:
            self._accept_refusal(self._state.refusal)
        if self._joined_to is not None and self._joined_to == self._state.coordinator:
            return
        if self._joined_to is not None:
            self._leave()
        now = time.monotonic()
        if now >= self._next_hello:
            self._next_hello = now + _HELLO_PERIOD_S
            token, state = self._credentials.token("engine"), self._state
            self._socket.send(encode(Hello(PROTOCOL_VERSION, "engine", token, state.incarnation, state.pid)))

    def _accept_refusal(self, refusal: Unwelcome) -> None:
        if refusal.reason != "fenced":
            raise ProtocolError(f"the coordinator refuses this replica: {refusal.message}")
        _log.warning("this replica was given up (%s); it joins again as a new one", refusal.message)
        self._leave()
        self._state.incarnation = new_incarnation()
        self._state.refusal = None

    def _leave(self) -> None:
        """Whatever is held was promised to a coordinator that does not count on it any more, and so was a pause."""
        self._joined_to = None
        self._next_hello = 0.0
        for request_id in list(self._held):
            self._abort(request_id)
        self._outputs.clear()
        self._is_paused = False
        self._engine.resume()

    def _take_messages(self) -> None:
        while (frame := self._socket.receive()) is not None:
            try:
                self._take(ENGINE_DECODER.decode(frame))
            except ProtocolError as error:
                _log.warning("a message of the coordinator is dropped: %s", error)

    def _take(self, message: Message) -> None:
        match message:
            case Work(submission):
                self._start(submission)
            case Abort(request_id):
                self._abort(request_id)
            case EngineVerb():
                self._send(self._apply(message))
            case TimelineQuery(nonce, request_id):
                engine_id = self._engine_ids.get(request_id)
                self._send(TimelineAnswer(nonce, None if engine_id is None else self._timeline.read(engine_id)))
            case Welcome(incarnation):
                self._joined_to = self._state.coordinator = incarnation
                self._send(Join(self._facts))
                self._tell_what_is_cached()
            case Unwelcome(reason="hello"):
                self._leave()
            case Unwelcome():
                self._state.refusal = message

    def _tell_what_is_cached(self) -> None:
        """A new coordinator's router knows nothing of what this replica computed for others before."""
        self._block_events.clear()
        if self._facts.enable_prefix_caching:
            for event in self._engine.scheduler.allocator.cache.list_stored():
                self._block_events.put(event)

    def _start(self, submission: Submission) -> None:
        request_id = submission.request_id
        if request_id in self._held:
            return  # a message that came twice
        try:
            request = to_request(submission, next(self._ids), self._facts.vocab_size)
            self._remember(request_id, request.request_id)
            held = self._held[request_id] = _Held(request, len(request.choices))
            self._engine.add_request(request, listener=self._listener(request_id, held))
        except KilotronError as error:
            self._refuse(request_id, error)
        except Exception as error:
            _log.exception("request %s could not be added", request_id)
            self._refuse(request_id, StepFailedError(f"the request could not be added: {type(error).__name__}"))

    def _remember(self, request_id: str, engine_id: int) -> None:
        while len(self._engine_ids) >= _MOST_TIMELINES:
            del self._engine_ids[next(iter(self._engine_ids))]
        self._engine_ids[request_id] = engine_id

    def _listener(self, request_id: str, held: _Held) -> Listener:
        def listen(request: InferenceRequest, item: StreamItem) -> None:
            if self._held.get(request_id) is not held:
                return  # aborted meanwhile: nobody waits for this
            self._outputs.append(to_output(request_id, request, item))
            if item.finish_reason is not None:
                held.num_left -= 1
                if held.num_left == 0:
                    del self._held[request_id]

        return listen

    def _refuse(self, request_id: str, error: KilotronError) -> None:
        self._abort(request_id)
        self._send(EngineRefusal(request_id, to_wire(error)))

    def _abort(self, request_id: str) -> None:
        held = self._held.pop(request_id, None)
        if held is None:
            return
        for choice in held.request.choices:
            try:
                self._engine.abort(choice.request_id)
            except RequestNotFoundError:
                continue  # this continuation has ended

    def _apply(self, verb: EngineVerb) -> VerbDone:
        """A lifecycle verb; the coordinator has checked their order."""
        freed_bytes = 0
        try:
            match verb.verb:
                case "pause":
                    self._is_paused = True
                case "unpause":
                    self._is_paused = False
                case "suspend":
                    freed_bytes = self._engine.suspend(verb.kv_mode)
                case "resume":
                    self._engine.resume()
        except Exception as error:
            _log.exception("%s failed", verb.verb)
            failure = error if isinstance(error, KilotronError) else LifecycleError(f"{verb.verb} failed: {error}")
            return VerbDone(verb.nonce, freed_bytes, to_wire(failure))
        return VerbDone(verb.nonce, freed_bytes)

    def _send_outputs(self) -> None:
        events = self._block_events.take()
        if not self._outputs and not events:
            return
        outputs, self._outputs = self._outputs, []
        message = EngineOutput(outputs, events)
        try:
            self._send(message)
        except ProtocolError:  # too large together
            for output in outputs:
                self._send_alone(output)

    def _send_alone(self, output: Output) -> None:
        try:
            self._send(EngineOutput([output], []))
        except ProtocolError as error:
            self._abort(output.request_id)
            finish = Finish(reason="error", error=to_wire(StepFailedError(f"the result is too large: {error}")))
            failed = Output(output.request_id, output.choice, output.offset, "", [], finish=finish)
            self._send(EngineOutput([failed], []))

    def _send(self, message: Message) -> None:
        """Sends, waiting a while for a coordinator that is slow; without one the message is for nobody."""
        frame = encode(message)
        if self._socket.send(frame):
            return
        end = time.monotonic() + _SEND_PATIENCE_S
        while time.monotonic() < end and self._state.coordinator == self._joined_to:
            time.sleep(0.001)
            if self._socket.send(frame):
                return
        _log.warning("the coordinator does not take messages any more")
        self._leave()


def _load_of(figures: EngineLoadFigures) -> EngineLoad:
    return EngineLoad(
        num_steps=figures.num_steps,
        step_age_s=0.0 if figures.step_started is None else time.monotonic() - figures.step_started,
        num_running=figures.num_running,
        num_waiting=figures.num_waiting,
        num_blocks_owned=figures.num_blocks_owned,
        num_blocks_cached=figures.num_blocks_cached,
        num_prompt_tokens=figures.num_prompt_tokens_computed + figures.num_prompt_tokens_cached,
        num_cached_tokens=figures.num_prefix_tokens_hit,
        num_queried_tokens=figures.num_prefix_tokens_queried,
        num_generated_tokens=figures.num_tokens_generated,
        num_preemptions=figures.num_preemptions,
    )
