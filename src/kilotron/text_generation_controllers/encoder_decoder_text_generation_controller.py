"""EncoderDecoderTextGenerationController: what encoder-decoder models do otherwise between logits and text."""

import math
from typing import Any

from torch import Tensor

from kilotron.inference_request import InferenceRequest
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling.sampler import SampledTokens
from kilotron.scheduling.step_plan import StepPlan, StepResult
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController


class EncoderDecoderTextGenerationController(TextGenerationController):
    """A `TextGenerationController` that knows BART's forced end.

    Args:
        forced_eos_token_id: what the last token that a request may generate must be; None for models without.
        **options: see `TextGenerationController`.
    """

    def __init__(self, *arguments: Any, forced_eos_token_id: int | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._forced_eos_token_id = forced_eos_token_id
        self._last_positions: dict[int, int] = {}
        """Slot -> where its request's last token goes, if that is forced."""

    def generate_step(self, plan: StepPlan, batch: InferenceBatch) -> StepResult:
        """Runs the model and samples for every row that is due."""
        if self._forced_eos_token_id is not None:
            for admission in plan.admissions:
                request = self.progress_of(admission.request_id).request
                self._last_positions.pop(admission.slot, None)
                if _may_end_by(request, self._forced_eos_token_id):
                    self._last_positions[admission.slot] = request.prompt_length + request.max_generated - 1
        return super().generate_step(plan, batch)

    def sample_from_logits(self, logits: Tensor, slots: list[int], positions: list[int]) -> SampledTokens:
        """One token per row of `logits` [rows, padded vocabulary]."""
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            if self._last_positions.get(slot) == position:
                logits[row] = -math.inf
                logits[row, self._forced_eos_token_id] = 0.0
        return super().sample_from_logits(logits, slots, positions)


def _may_end_by(request: InferenceRequest, token_id: int) -> bool:
    """Whether nothing that the caller asked for forbids it."""
    params = request.sampling_params
    is_allowed = params.allowed_token_ids is None or token_id in params.allowed_token_ids
    return token_id in request.end_ids and is_allowed and params.min_tokens < request.max_generated
