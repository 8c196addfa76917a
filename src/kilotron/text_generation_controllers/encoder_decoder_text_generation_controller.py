"""EncoderDecoderTextGenerationController: what encoder-decoder models do otherwise between logits and text."""

import math
from typing import Any

from torch import Tensor

from kilotron.scheduling.step_plan import RowPlan, StepPlan, StepResult
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController


class EncoderDecoderTextGenerationController(TextGenerationController):
    """A `TextGenerationController` that knows BART's forced tokens; see there for the arguments."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        own = self.inference_wrapped_model.encoder_decoder
        self._forced_bos_token_id = None if own is None else own.forced_bos_token_id
        self._forced_eos_token_id = None if own is None else own.forced_eos_token_id

    def _sample(self, plan: StepPlan, logits: Tensor, num_samples: int) -> StepResult:
        if self._forced_bos_token_id is not None or self._forced_eos_token_id is not None:
            rows = (row for row in plan.rows if row.needs_logits)
            for index, row in enumerate(rows):
                forced = self._forced_token(row)
                if forced is not None:
                    logits[index] = -math.inf
                    logits[index, forced] = 0.0
        return super()._sample(plan, logits, num_samples)

    def _forced_token(self, row: RowPlan) -> int | None:
        """What the row's next token must be, unless the caller forbids that."""
        request = self.progress_of(row.request_id).request
        params, position = request.sampling_params, row.start + len(row.token_ids)
        forced = None
        if position == request.prompt_length + request.max_generated - 1:
            may_end = self._forced_eos_token_id in request.end_ids and params.min_tokens < request.max_generated
            forced = self._forced_eos_token_id if may_end else None
        elif position == request.prompt_length == 1:
            forced = self._forced_bos_token_id
        is_allowed = params.allowed_token_ids is None or forced in params.allowed_token_ids
        return forced if is_allowed else None
