"""BeamProgress: the growing output of a beam search. Knows texts and results; which sequences live, `beam_group`."""

import time

from kilotron.errors import KilotronError
from kilotron.inference_request import BeamResult, InferenceRequest
from kilotron.scheduling.step_plan import BeamMove
from kilotron.text_generation_controllers.beam_group import BeamGroup, BeamRules, Candidates, FinishedSequence
from kilotron.text_generation_controllers.generation_progress import GenerationProgress, shown_tokens
from kilotron.text_generation_controllers.output_text import OutputText
from kilotron.tokenization.tokenizer import Tokenizer


class BeamProgress(GenerationProgress):
    """Takes candidates of a request's beams. Until the end `generated_tokens` are those of the best live beam."""

    __slots__ = ("_group",)

    def __init__(self, request: InferenceRequest, tokenizer: Tokenizer | None) -> None:
        super().__init__(request, tokenizer)
        self._group = BeamGroup(BeamRules.of(request))

    @property
    def end_reason(self) -> str | None:
        """Why the best of the finished sequences ended; None when there is none."""
        finished = self._group.finished
        return self._reason_of(finished[0]) if finished else None

    def put_candidates(self, beam: int, candidates: Candidates) -> list[BeamMove] | None:
        """See `BeamGroup.put_candidates`."""
        moves = self._group.put_candidates(beam, candidates)
        request = self.request
        if moves is not None and request.timings.first_token is None:
            request.timings.first_token = time.monotonic()
        if moves:
            request.generated_tokens = self._group.unfinished[0].sequence.token_ids
        return moves

    def finish(self, reason: str, error: KilotronError | None = None) -> None:
        """Completes the results. A search that did not get to its end gives what it has, live sequences too."""
        request, params = self.request, self.request.sampling_params
        found = self._group.finished
        if reason not in ("stop", "length"):
            found = sorted(found + self._group.unfinished, key=lambda each: -each.score)
        found = found[: params.num_return_gen]
        if found:
            best = found[0].sequence
            request.generated_tokens = best.token_ids
            if request.generated_log_probs is not None:
                request.generated_log_probs = best.log_probs
            last = best.token_ids[-1]
            if last in request.end_ids and (last in params.stop_token_ids or last == params.termination_id):
                request.stop_reason = last
        super().finish(reason, error)
        request.beams = [self._result(each) for each in found]

    def _result(self, found: FinishedSequence) -> BeamResult:
        sequence = found.sequence
        return BeamResult(
            token_ids=sequence.token_ids,
            text=self._text_of(sequence.token_ids),
            score=found.score,
            log_probs=sequence.log_probs,
            cumulative_log_prob=sequence.total,
            finish_reason=self._reason_of(found),
        )

    def _reason_of(self, found: FinishedSequence) -> str:
        token_ids, request = found.sequence.token_ids, self.request
        if token_ids[-1] in request.end_ids:
            return "stop"
        if len(token_ids) >= request.max_generated:
            return "length"
        return request.finish_reason or "error"

    def _text_of(self, token_ids: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        text = OutputText(self.request, self._tokenizer)
        text.put(shown_tokens(self.request, token_ids))
        text.close()
        return str(text)
