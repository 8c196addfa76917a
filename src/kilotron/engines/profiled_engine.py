"""The engine and its parts with the time of each hop of a step on record; they change nothing else.

Subclasses rather than hooks, so that an engine that is not profiled has nothing to ask or to call.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.inference_request import InferenceRequest
from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.model_inference_wrappers.t5_inference_wrapper import T5InferenceWrapper
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling.sampler import SampledTokens
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import NO_MOVES, BeamMove, StepPlan, StepResult
from kilotron.text_generation_controllers.encoder_decoder_text_generation_controller import (
    EncoderDecoderTextGenerationController,
)
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.trace import Trace

HOP = "hop"
"""The category of all spans made here."""
STEP = "step"
"""The span around the others."""


class ProfiledScheduler(Scheduler):
    """Records `plan` and `resolve`."""

    def __init__(self, *args: Any, trace: Trace) -> None:
        super().__init__(*args)
        self.trace = trace
        self.figures: dict[str, int] = {}
        """What the step at hand has to do."""

    def plan_step(self, now: float) -> StepPlan | None:
        """See `Scheduler`."""
        plan = self.trace.run(super().plan_step, now, name="plan", category=HOP)
        if plan is not None:
            self.figures |= {"step": plan.step, "rows": len(plan.rows), "tokens": plan.num_tokens}
        return plan

    def resolve_step(
        self,
        plan: StepPlan,
        result: StepResult,
        ended: Collection[int],
        moves: Mapping[int, Sequence[BeamMove]] = NO_MOVES,
    ) -> None:
        """See `Scheduler`."""
        self.trace.run(super().resolve_step, plan, result, ended, moves, name="resolve", category=HOP)


class ProfiledContext(DynamicInferenceContext):
    """Records `prepare`."""

    def __init__(self, *args: Any, trace: Trace, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trace = trace

    def prepare_batch(self, plan: StepPlan) -> InferenceBatch:
        """See `DynamicInferenceContext`."""
        return self.trace.run(super().prepare_batch, plan, name="prepare", category=HOP)


class ProfiledWrapper(GPTInferenceWrapper):
    """Records `run`."""

    def __init__(self, *args: Any, trace: Trace) -> None:
        super().__init__(*args)
        self.trace = trace

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """See `GPTInferenceWrapper`."""
        return self.trace.run(super().run_one_forward_step, batch, name="run", category=HOP)


class ProfiledT5Wrapper(ProfiledWrapper, T5InferenceWrapper):
    """Records `run`, encoder and decoder together."""


def wrap_profiled_model(model: GPTModel, *, trace: Trace) -> GPTInferenceWrapper:
    """The wrapper for a model's kind."""
    if isinstance(model, EncoderDecoderModel):
        return ProfiledT5Wrapper(model, trace=trace)
    return ProfiledWrapper(model, trace=trace)


class ProfiledController(TextGenerationController):
    """Records `generate` and the `sample` in it."""

    def __init__(self, *args: Any, trace: Trace, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trace = trace

    def generate_step(self, plan: StepPlan, batch: InferenceBatch) -> StepResult:
        """See `TextGenerationController`."""
        return self.trace.run(super().generate_step, plan, batch, name="generate", category=HOP)

    def sample_rows(self, logits: Tensor, slots: list[int], positions: list[int]) -> SampledTokens:
        """See `TextGenerationController`."""
        return self.trace.run(super().sample_rows, logits, slots, positions, name="sample", category=HOP)


class ProfiledEncoderDecoderController(ProfiledController, EncoderDecoderTextGenerationController):
    """The same for encoder-decoder models."""


def make_profiled_controller(
    wrapper: GPTInferenceWrapper, *args: Any, trace: Trace, **options: Any
) -> TextGenerationController:
    """The controller for a model's kind."""
    kind = ProfiledController if wrapper.encoder_decoder is None else ProfiledEncoderDecoderController
    return kind(wrapper, *args, trace=trace, **options)


class ProfiledEngine(DynamicInferenceEngine):
    """Records `step`, `end` and `publish`, and writes the trace when it is closed."""

    scheduler: ProfiledScheduler

    def __init__(self, *args: Any, trace: Trace, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trace = trace

    def step(self) -> list[InferenceRequest]:
        """See `DynamicInferenceEngine`."""
        with self.lock:  # so that what another thread's step takes does not count here
            figures = self.scheduler.figures = {}
            return self.trace.run(super().step, name=STEP, category=HOP, arguments=figures)

    def close(self, reason: str = "it was shut down") -> None:
        """See `DynamicInferenceEngine`."""
        with self.lock:
            was_open = self._closed_because is None
            try:
                super().close(reason)
            finally:
                if was_open:
                    self.trace.write()

    def _update_generation_status(self, plan: StepPlan, result: StepResult) -> list[InferenceRequest]:
        return self.trace.run(super()._update_generation_status, plan, result, name="end", category=HOP)

    def _publish(self, plan: StepPlan) -> None:
        self.trace.run(super()._publish, plan, name="publish", category=HOP)
