"""TextGenerationController: runs the model on a batch, samples, and keeps each request's growing output.

Sees a step's plan, batch and result, never the scheduler or the context. Subclass it to tokenize, sample, end or
detokenize in a way of your own.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kilotron.errors import ConfigError, InvalidRequestError, KilotronError, NumericalError, SamplingParamsError
from kilotron.inference_request import InferenceRequest
from kilotron.model_inference_wrappers.context_window_wrapper import as_batch_wrapper
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling.sampler import SampledTokens, Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.step_plan import BeamMove, RowPlan, StepPlan, StepResult, TokenScores
from kilotron.text_generation_controllers.beam_progress import BeamProgress
from kilotron.text_generation_controllers.generation_progress import GenerationProgress, shown_tokens
from kilotron.text_generation_controllers.own_sampling import RowSampling
from kilotron.tokenization.prompt_text import tokenize_prompt
from kilotron.tokenization.tokenizer import Tokenizer


class TextGenerationController:
    """Logits to tokens to text for decoder-only models.

    Override `tokenize_prompt`, `sample_from_logits`, `update_generation_status` or `detokenize_generations` for what is
    to be done in another way; what is not overridden costs nothing.

    Args:
        inference_wrapped_model: the model: an `AbstractModelInferenceWrapper`, or anything with the methods of a
            `WindowedModel`.
        tokenizer: None when only token ids go in and out.
        table: per-slot sampling parameters, one slot per request that can run at once; None makes one that grows.
        sampler: draws from the logits, and scores prompts; None makes one for the table.

    Raises:
        ConfigError: the model is no wrapper, or the tokenizer none of kilotron's.
    """

    def __init__(
        self,
        inference_wrapped_model: Any,
        tokenizer: Tokenizer | None,
        *,
        table: SamplingTable | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.inference_wrapped_model = as_batch_wrapper(inference_wrapped_model)
        if tokenizer is not None and not hasattr(tokenizer, "create_detokenizer"):
            raise ConfigError(
                f"tokenizer must be a kilotron Tokenizer, not {type(tokenizer).__name__}; load_tokenizer of "
                "kilotron.tokenization makes one of a tokenizer's files"
            )
        self.tokenizer = tokenizer
        vocab_size, kernels = self.inference_wrapped_model.vocab_size, self.inference_wrapped_model.kernels
        self._table = table or SamplingTable(max_requests=1, vocab_size=vocab_size, device=kernels.device)
        self._sampler = sampler or Sampler(self._table, kernels)
        self._progress: dict[int, GenerationProgress] = {}
        self._beam_moves: dict[int, list[BeamMove]] = {}
        own, plain = type(self), TextGenerationController
        self._row_sampling: RowSampling | None = None
        if own.sample_from_logits is not plain.sample_from_logits:
            self._row_sampling = RowSampling(self._sampler, kernels, vocab_size)
        self._has_own_text = own.detokenize_generations is not plain.detokenize_generations
        self.inference_wrapped_model.prep_model_for_inference()

    def reserve_slots(self, max_requests: int) -> None:
        """So many requests are going to run at once."""
        self._table.reserve(max_requests)

    def tokenize_prompt(self, prompt: str, *, add_BOS: bool = False) -> list[int]:  # noqa: N803 - Megatron's spelling
        """Text to ids; `add_BOS` puts the begin-of-sequence id in front unless it is there.

        Raises:
            InvalidRequestError: there is no tokenizer, or `add_BOS` is asked of one without such an id.
        """
        return tokenize_prompt(self.tokenizer, prompt, add_BOS=add_BOS)

    def start_request(self, request: InferenceRequest) -> None:
        """From now on the request's tokens are followed."""
        kind = BeamProgress if request.sampling_params.is_beam_search else GenerationProgress
        self._progress[request.request_id] = kind(request, self.tokenizer)

    def progress_of(self, request_id: int) -> GenerationProgress:
        """The growing output of an unfinished request."""
        return self._progress[request_id]

    @torch.inference_mode()
    def generate_step(self, plan: StepPlan, batch: InferenceBatch) -> StepResult:
        """Runs the model and samples for every row that is due."""
        for admission in plan.admissions:
            self._table.admit(
                admission.slot,
                admission.sampling_params,
                seed=admission.seed,
                prompt_ids=admission.token_ids[: admission.prompt_length],
                generated_ids=admission.token_ids[admission.prompt_length :],
                end_ids=admission.end_ids,
                bad_word_ids=admission.bad_word_ids,
            )
        logits = self.inference_wrapped_model.run_one_forward_step(batch)
        return self._sample(plan, logits, batch.num_samples)

    def sample_rows(self, logits: Tensor, slots: list[int], positions: list[int]) -> SampledTokens:
        """One token per row of `logits` [rows, padded vocabulary], all rows at once, as their slots say."""
        return self._sampler.sample(logits, slots, positions)

    def sample_from_logits(
        self, last_token_logits: Tensor, common_inference_params: SamplingParams, vocab_size: int
    ) -> Tensor:
        """Megatron's hook: the next token of each row, [rows] int64. Override it to sample in a way of your own.

        An override gets one row at a time, so that what it does for a request cannot depend on others, and replaces
        all that the params say of sampling; `super()` samples as they say. Log-probabilities stay the model's own.

        Args:
            last_token_logits: [rows, padded vocabulary] float32; may be overwritten.
            common_inference_params: the request's, or others.
            vocab_size: number of real tokens.
        """
        sampling = self._row_sampling or RowSampling(self._sampler, self.inference_wrapped_model.kernels, vocab_size)
        return sampling.sample_plainly(last_token_logits, common_inference_params)

    def update_generation_status(
        self, row: RowPlan, token_id: int | None, result: StepResult
    ) -> InferenceRequest | None:
        """Gives a row's request its new token, if the row samples; returns the request if it ended, its text complete.

        What is raised here is this request's fault alone: the engine ends it, and goes on with the step's other rows.
        """
        request_id = row.request_id
        progress = self._progress[request_id]
        if progress.request.finish_reason is not None:  # another of its beams ended it in this step
            return None
        if request_id in result.prompt_scores:
            progress.add_prompt_scores(result.prompt_scores[request_id])
        if request_id in result.faults:
            fault = result.faults[request_id]
            progress.finish("error", type(fault)(f"request {request_id}: {fault}"))
            return progress.request
        if isinstance(progress, BeamProgress) and row.num_candidates:
            return self._advance_beams(progress, row, result)
        if request_id in result.scores:
            progress.add_scores(result.scores[request_id])
        reason = progress.advance(token_id) if token_id is not None else _end_of_scoring(row, progress.request)
        if reason is None:
            return None
        self.finish_request(progress, reason)
        return progress.request

    def take_beam_moves(self) -> dict[int, list[BeamMove]]:
        """Request id -> how its beams go on, for those that were advanced since the last call."""
        moves, self._beam_moves = self._beam_moves, {}
        return moves

    def finish_request(self, progress: GenerationProgress, reason: str) -> None:
        """Completes a request that ends with `reason`: its text and its tables."""
        progress.finish(reason)
        if self._has_own_text:
            shown = shown_tokens(progress.request, progress.request.generated_tokens)
            progress.replace_text(self.detokenize_generations(torch.tensor(shown, dtype=torch.int64)))

    def detokenize_generations(self, tokens: Tensor | Sequence[int]) -> str:
        """Megatron's hook: the text of a request's generated tokens, without the one that ended it.

        Override it to make the final text in a way of your own; what is streamed before the end is not.

        Raises:
            InvalidRequestError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidRequestError("there is no tokenizer, so token ids have no text")
        return self.tokenizer.detokenize(torch.as_tensor(tokens).tolist())

    def end_request(self, request_id: int) -> GenerationProgress:
        """Stops following a request and returns what it came to."""
        return self._progress.pop(request_id)

    def _advance_beams(self, progress: BeamProgress, row: RowPlan, result: StepResult) -> InferenceRequest | None:
        request = progress.request
        if row.start + len(row.token_ids) != request.prompt_length + request.generated_length:
            # Computed again after a preemption: its candidates had come before, and the search has gone on by now.
            return None
        moves = progress.put_candidates(row.beam, result.candidates[request.request_id, row.beam])
        if moves is None:
            return None
        if moves:
            self._beam_moves[request.request_id] = moves
            return None
        reason = progress.end_reason
        if reason is None:
            progress.finish("error", SamplingParamsError("the sampling parameters forbid every token that can follow"))
        else:
            self.finish_request(progress, reason)
        return request

    def _sample(self, plan: StepPlan, logits: Tensor, num_samples: int) -> StepResult:
        prompt_scores: dict[int, TokenScores] = {}
        faults: dict[int, KilotronError] = {}
        if num_samples < len(logits):
            prompt_scores, faults = self._score_prompts(plan, logits[num_samples:])
            logits = logits[:num_samples]
        if not num_samples:
            return StepResult([], {}, prompt_scores, faults=faults)
        rows = [row for row in plan.rows if row.needs_logits]
        candidates: dict[tuple[int, int], list[tuple[int, float]]] = {}
        if any(row.num_candidates for row in rows):
            candidates, beam_faults = self._list_candidates(rows, logits)
            faults |= beam_faults
            logits = logits[torch.tensor([row.samples for row in rows], device=logits.device)]
            rows = [row for row in rows if row.samples]
        sampled = self._sample_rows(rows, logits) if rows else SampledTokens([], [], [], {})
        scores = {}
        for row, log_prob, top_n in zip(rows, sampled.log_probs, sampled.top_n, strict=True):
            if log_prob is not None:
                scores[row.request_id] = TokenScores([log_prob], None if top_n is None else [top_n])
        faults |= {rows[index].request_id: fault for index, fault in sampled.faults.items()}
        return StepResult(sampled.token_ids, scores, prompt_scores, candidates, faults)

    def _sample_rows(self, rows: list[RowPlan], logits: Tensor) -> SampledTokens:
        slots = [row.slot for row in rows]
        positions = [row.start + len(row.token_ids) for row in rows]
        if self._row_sampling is None:
            sampled = self.sample_rows(logits, slots, positions)
        else:
            params = [self._progress[row.request_id].request.sampling_params for row in rows]
            sampled = self._row_sampling.sample(self.sample_from_logits, logits, params, slots, positions)
        self._table.record(slots, sampled.token_ids)
        return sampled

    def _list_candidates(
        self, rows: list[RowPlan], logits: Tensor
    ) -> tuple[dict[tuple[int, int], list[tuple[int, float]]], dict[int, KilotronError]]:
        """What beam search chooses from, by request and beam, and faults by request. `logits` are those of `rows`."""
        chosen = [index for index, row in enumerate(rows) if row.num_candidates]
        beams = [rows[index] for index in chosen]
        found = self._sampler.list_candidates(
            logits[torch.tensor(chosen, device=logits.device)],
            [row.slot for row in beams],
            [row.start + len(row.token_ids) for row in beams],
            [row.num_candidates for row in beams],
        )
        keys = [(row.request_id, row.beam) for row in beams]
        return dict(zip(keys, found.rows, strict=True)), {
            beams[index].request_id: fault for index, fault in found.faults.items()
        }

    def _score_prompts(self, plan: StepPlan, logits: Tensor) -> tuple[dict[int, TokenScores], dict[int, KilotronError]]:
        """Log-probabilities of prompt tokens, by request; rows with numbers that are not finite are faults."""
        scores: dict[int, TokenScores] = {}
        faults: dict[int, KilotronError] = {}
        first = 0
        for row in plan.rows:
            if row.score is None:
                continue
            part = logits[first : first + len(row.score.targets)]
            first += len(row.score.targets)
            log_probs, top_n = self._sampler.score(part, row.score.targets, row.score.top_n)
            if any(map(math.isnan, log_probs)):
                faults[row.request_id] = NumericalError("the model's logits for the prompt are not finite")
            else:
                scores[row.request_id] = TokenScores(log_probs, top_n)
        return scores, faults


SimpleTextGenerationController = TextGenerationController
"""Megatron's older name."""


def _end_of_scoring(row: RowPlan, request: InferenceRequest) -> str | None:
    """A request that generates nothing is done when its prompt is."""
    is_done = request.max_generated == 0 and row.start + len(row.token_ids) == request.prompt_length
    return "length" if is_done else None
