"""A fault at any point of the way of one request of eight: it gets an error, and the others their own tokens."""

import queue
from collections.abc import Collection
from typing import Any

import pytest
from torch import Tensor

from fakes import ScriptedWrapper, assert_nothing_is_left, make_scripted_engine
from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.engine_thread import EngineThread
from kilotron.errors import KilotronError, StepFailedError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling.sampler import SampledTokens
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import RowPlan, StepPlan, StepResult
from kilotron.text_generation_controllers.generation_progress import GenerationProgress
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization import ByteTokenizer
from unit.engines.test_suspend_resume import play
from unit.kernels.cpu_backends import ISAS, make_cpu

LETTERS = "abcdefgh"
VICTIM = "d"
SLOT = LETTERS.index(VICTIM)
PROMPT_POSITION = 1  # behind the begin of the sequence
PARAMS = SamplingParams(
    temperature=0.0, num_tokens_to_generate=6, stop_words=["never"], streaming=True, return_log_probs=True
)


class Fault:
    """Raises when it is met at its point: the first time, or whenever it is."""

    def __init__(self, point: str, error: BaseException | None = None, *, is_lasting: bool = False) -> None:
        self.point = point
        self.is_lasting = is_lasting
        self.error = error or ZeroDivisionError(f"at {point}")
        self.num_raised = 0

    def meet(self, point: str, is_victim: bool = True) -> None:
        if point == self.point and is_victim and (self.is_lasting or not self.num_raised):
            self.num_raised += 1
            raise self.error


class FaultyDetokenizer:
    """Text that cannot be made."""

    def __init__(self, inner: Any, fault: Fault, is_victim: bool) -> None:
        self.inner, self.fault, self.is_victim = inner, fault, is_victim

    def put(self, token_id: int) -> str:
        self.fault.meet("detokenizer", self.is_victim)
        return str(self.inner.put(token_id))

    def put_many(self, token_ids: Any) -> str:
        return str(self.inner.put_many(token_ids))

    def flush(self) -> str:
        self.fault.meet("end of the text", self.is_victim)
        return str(self.inner.flush())


class FaultyTokenizer(ByteTokenizer):
    """Text that cannot be read or written."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def tokenize(self, text: str, **options: Any) -> list[int]:
        self.fault.meet("tokenizer", text == VICTIM)
        return super().tokenize(text, **options)

    def create_detokenizer(self, prompt_ids: Any, **options: Any) -> Any:
        is_victim = prompt_ids[-1] == ord(VICTIM)
        self.fault.meet("start of the text", is_victim)
        return FaultyDetokenizer(super().create_detokenizer(prompt_ids, **options), self.fault, is_victim)


class FaultyWrapper(ScriptedWrapper):
    """A forward pass that fails."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        places = zip(batch.token_ids.tolist(), batch.positions.tolist(), strict=True)
        self.fault.meet("forward", (ord(VICTIM), PROMPT_POSITION) in places)
        self.fault.meet("third forward", self.num_steps == 2)
        return super().run_one_forward_step(batch)


class FaultyController(TextGenerationController):
    """Fails at the edges of every hop it has."""

    fault: Fault

    def start_request(self, request: InferenceRequest) -> None:
        self.fault.meet("start of a request", request.prompt == VICTIM)
        super().start_request(request)

    def generate_step(self, plan: StepPlan, batch: InferenceBatch) -> StepResult:
        self.fault.meet("sampling table", any(admission.slot == SLOT for admission in plan.admissions))
        return super().generate_step(plan, batch)

    def sample_rows(self, logits: Tensor, slots: list[int], positions: list[int]) -> SampledTokens:
        self.fault.meet("before sampling", SLOT in slots)
        sampled = super().sample_rows(logits, slots, positions)
        self.fault.meet("after sampling", SLOT in slots and positions[0] == 4)
        return sampled

    def update_generation_status(
        self, row: RowPlan, token_id: int | None, result: StepResult
    ) -> InferenceRequest | None:
        request = self.progress_of(row.request_id).request
        is_victim = request.prompt == VICTIM
        self.fault.meet("first token", is_victim)
        self.fault.meet("third token", is_victim and request.generated_length == 2)
        ended = super().update_generation_status(row, token_id, result)
        self.fault.meet("last token", is_victim and ended is not None)
        return ended

    def finish_request(self, progress: GenerationProgress, reason: str) -> None:
        self.fault.meet("end of a request", progress.request.prompt == VICTIM)
        super().finish_request(progress, reason)


class FaultyContext(DynamicInferenceContext):
    """A batch that cannot be laid out."""

    fault: Fault

    def prepare_batch(self, plan: StepPlan) -> InferenceBatch:
        is_victim = any(row.slot == SLOT for row in plan.rows)
        self.fault.meet("before the layout", is_victim)
        batch = super().prepare_batch(plan)
        self.fault.meet("after the layout", is_victim and plan.step == 3)
        return batch


class FaultyScheduler(Scheduler):
    """A scheduler with a bug."""

    fault: Fault

    def plan_step(self, now: float) -> StepPlan | None:
        self.fault.meet("before a plan", self.step == 2)
        plan = super().plan_step(now)
        self.fault.meet("after a plan", self.step == 1)  # slots and blocks are granted that nobody will use
        return plan

    def resolve_step(self, plan: StepPlan, result: StepResult, ended: Collection[int], *moves: Any) -> None:
        self.fault.meet("before resolving", plan.step == 3)
        super().resolve_step(plan, result, ended, *moves)
        self.fault.meet("after resolving", plan.step == 6)  # the last one: all have ended

    def add_request(self, request: InferenceRequest) -> None:
        self.fault.meet("queue", request.prompt == VICTIM)
        super().add_request(request)


def make_engine(fault: Fault) -> DynamicInferenceEngine:
    """Parts with faults, of the classes of the real ones."""
    engine = make_scripted_engine(FaultyWrapper(fault), FaultyTokenizer(fault))
    for part, kind in (
        (engine.controller, FaultyController),
        (engine.context, FaultyContext),
        (engine.scheduler, FaultyScheduler),
    ):
        part.__class__ = kind  # type: ignore[assignment]
        part.fault = fault  # type: ignore[union-attr]
    return engine


class Outcomes:
    """What callers got: exactly one end each."""

    def __init__(self) -> None:
        self.ends: dict[str, list[str]] = {letter: [] for letter in LETTERS}
        self.texts = dict.fromkeys(LETTERS, "")
        self.requests: dict[str, InferenceRequest] = {}

    def listen(self, request: InferenceRequest, item: StreamItem) -> None:
        assert request.prompt is not None
        self.texts[request.prompt] += item.text
        if item.finish_reason is not None:
            self.ends[request.prompt].append(item.finish_reason)


def serve(engine: DynamicInferenceEngine) -> Outcomes:
    """Eight requests, added and run as a worker would."""
    outcomes = Outcomes()
    for letter in LETTERS:
        try:
            outcomes.requests[letter] = engine.add_request(letter, PARAMS, listener=outcomes.listen)
        except Exception:
            outcomes.ends[letter].append("refused")
    while engine.has_unfinished_requests:
        engine.step()
    return outcomes


def results(outcomes: Outcomes, letters: str) -> list[tuple[object, ...]]:
    picked = [outcomes.requests[letter] for letter in letters]
    return [(r.generated_tokens, r.generated_text, r.generated_log_probs, r.finish_reason) for r in picked]


OF_ONE = {
    "tokenizer": "refused",
    "start of a request": "refused",
    "start of the text": "refused",
    "queue": "refused",
    "detokenizer": "error",
    "first token": "error",
    "third token": "error",
    "last token": "error",
    "end of a request": "error",
    "end of the text": "error",
}
OF_A_STEP = [
    "sampling table", "before the layout", "after the layout", "forward", "before sampling", "after sampling",
]  # fmt: skip
OF_THE_SCHEDULER = ["before a plan", "after a plan", "before resolving"]


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), MemoryError(), RecursionError()], ids=repr)
@pytest.mark.parametrize("point", OF_ONE)
def test_a_fault_of_one_request_ends_that_request_and_changes_no_other(point: str, error: Exception) -> None:
    fault_free = serve(make_engine(Fault("nowhere")))
    fault = Fault(point, error)
    engine = make_engine(fault)
    outcomes = serve(engine)
    assert fault.num_raised == 1
    assert outcomes.ends == {letter: ["length"] for letter in LETTERS} | {VICTIM: [OF_ONE[point]]}
    others = LETTERS.replace(VICTIM, "")
    assert results(outcomes, others) == results(fault_free, others)
    assert_nothing_is_left(engine)
    assert results(serve(engine), LETTERS) == results(fault_free, LETTERS)


@pytest.mark.parametrize("point", [point for point, end in OF_ONE.items() if end == "error"])
def test_a_failed_request_has_an_error_with_its_cause(point: str) -> None:
    fault = Fault(point)
    request = serve(make_engine(fault)).requests[VICTIM]
    assert (request.status, request.finish_reason) == (Status.FAILED, "error")
    assert isinstance(request.error, StepFailedError)
    assert request.error.__cause__ is fault.error or str(fault.error) in str(request.error)


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), MemoryError()], ids=repr)
@pytest.mark.parametrize("point", [*OF_A_STEP, "third forward"])
def test_a_step_that_fails_once_is_made_up_for_and_nobody_notices(point: str, error: Exception) -> None:
    fault = Fault(point, error)
    engine = make_engine(fault)
    outcomes = serve(engine)
    assert fault.num_raised == engine.read_load().num_steps_failed == 1
    assert results(outcomes, LETTERS) == results(serve(make_engine(Fault("nowhere"))), LETTERS)
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("point", OF_A_STEP)
def test_a_request_that_makes_every_step_fail_ends_and_changes_no_other(point: str) -> None:
    fault = Fault(point, is_lasting=True)
    engine = make_engine(fault)
    outcomes = serve(engine)
    assert fault.num_raised == 2
    assert outcomes.ends == {letter: ["length"] for letter in LETTERS} | {VICTIM: ["error"]}
    assert outcomes.requests[VICTIM].error.__cause__ is fault.error
    others = LETTERS.replace(VICTIM, "")
    assert results(outcomes, others) == results(serve(make_engine(Fault("nowhere"))), others)
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), MemoryError()], ids=repr)
@pytest.mark.parametrize("point", OF_THE_SCHEDULER)
def test_a_fault_of_the_scheduler_fails_all_requests_once_and_the_engine_goes_on(point: str, error: Exception) -> None:
    fault = Fault(point, error)
    engine = make_engine(fault)
    outcomes = serve(engine)
    assert fault.num_raised == engine.read_load().num_steps_failed == 1
    assert outcomes.ends == {letter: ["error"] for letter in LETTERS}
    assert all(isinstance(request.error, StepFailedError) for request in outcomes.requests.values())
    assert_nothing_is_left(engine)
    assert results(serve(engine), LETTERS) == results(serve(make_engine(Fault("nowhere"))), LETTERS)


class ForgetsOnce(TextGenerationController):
    """Loses what a step gave, after everything in it has happened."""

    has_lost = False

    def generate_step(self, plan: StepPlan, batch: InferenceBatch) -> StepResult:
        result = super().generate_step(plan, batch)
        if not self.has_lost:
            self.has_lost = True
            raise MemoryError
        return result


def lose_a_step(engine: DynamicInferenceEngine) -> None:
    engine.controller.__class__ = ForgetsOnce  # type: ignore[assignment]


@pytest.mark.parametrize("at_step", [0, 3, 9])
@pytest.mark.parametrize("isa", ISAS[:1])
def test_rows_that_are_run_again_give_the_same_bits(isa: str, at_step: int) -> None:
    """With penalties, siblings, scored prompts and chunks: no state of the lost step may be left."""
    kernels = make_cpu(isa)
    assert play(kernels, lose_a_step, at_step) == play(kernels, lambda engine: None, at_step)


def test_requests_that_had_just_ended_keep_their_end_when_the_books_fail() -> None:
    engine = make_engine(Fault("after resolving"))
    assert serve(engine).ends == {letter: ["length"] for letter in LETTERS}
    assert_nothing_is_left(engine)


def test_siblings_come_in_together_or_not_at_all() -> None:
    class ThirdFails(FaultyController):
        num_started = 0

        def start_request(self, request: InferenceRequest) -> None:
            self.num_started += 1
            if self.num_started == 3:
                raise MemoryError
            super().start_request(request)

    engine = make_engine(Fault("nowhere"))
    engine.controller.__class__ = ThirdFails  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        engine.add_request("a", SamplingParams(n=4, num_tokens_to_generate=3))
    assert_nothing_is_left(engine)


class HopelessScheduler(Scheduler):
    """Can plan nothing."""

    def plan_step(self, now: float) -> StepPlan | None:
        raise AssertionError("two and two is five")


def test_a_scheduler_that_fails_twice_in_a_row_is_given_up() -> None:
    engine = make_scripted_engine()
    engine.scheduler.__class__ = HopelessScheduler  # type: ignore[assignment]
    first = engine.add_request("a", PARAMS)
    engine.step()
    assert first.finish_reason == "error"
    engine.add_request("b", PARAMS)
    with pytest.raises(AssertionError, match="two and two"):
        engine.step()


def test_an_engine_thread_never_spins_on_a_hopeless_scheduler() -> None:
    engine = make_scripted_engine()
    engine.scheduler.__class__ = HopelessScheduler  # type: ignore[assignment]
    thread = EngineThread(engine)
    ends: queue.Queue[str] = queue.Queue()

    def submit() -> None:
        def hear(_request: InferenceRequest, item: StreamItem) -> None:
            ends.put(item.finish_reason or "text")

        def refuse(error: KilotronError) -> None:
            ends.put(str(error))

        thread.submit(engine.intake.build("a", PARAMS), hear, refuse)

    heard = []
    for _ in range(3):
        submit()
        heard.append(ends.get(timeout=10))
    assert heard[:2] == ["error", "abort"]
    assert "two and two is five" in heard[2]
    assert engine.read_load().num_steps_failed == 2
    thread.close()


def test_a_listener_hears_of_the_end_even_if_its_last_text_is_lost() -> None:
    class Lost(GenerationProgress):
        __slots__ = ()

        def take_item(self) -> StreamItem | None:
            raise MemoryError

    class Losing(TextGenerationController):
        def start_request(self, request: InferenceRequest) -> None:
            self._progress[request.request_id] = Lost(request, self.tokenizer)

    engine = make_scripted_engine()
    engine.controller.__class__ = Losing  # type: ignore[assignment]
    ends: list[str | None] = []
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=3)
    engine.add_request("a", params, listener=lambda _, item: ends.append(item.finish_reason))
    while engine.has_unfinished_requests:
        engine.step()
    assert ends == ["error"]
    assert_nothing_is_left(engine)
