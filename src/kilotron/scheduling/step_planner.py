"""Turns requests into rows of a step: how many tokens each may compute, and which blocks it needs for that."""

from dataclasses import dataclass

from kilotron.scheduling.scheduled_request import ScheduledRequest
from kilotron.scheduling.step_plan import EncoderInput, RowPlan, ScoreSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The bounds the scheduler works within; see `InferenceConfig` for their meaning."""

    block_size: int
    max_requests: int
    max_tokens: int
    max_logits_tokens: int
    max_waiting_requests: int
    aging_steps: int
    enable_prefix_caching: bool
    enable_chunked_prefill: bool


class StepBudget:
    """Tokens and logits left in the step being planned."""

    __slots__ = ("logits", "rows_to_come", "tokens")

    def __init__(self, limits: SchedulerLimits, num_running: int) -> None:
        self.tokens = limits.max_tokens
        self.logits = limits.max_logits_tokens
        # Each running row that has not been planned yet is sure of one token, so that a long prompt cannot stop
        # the others from going on.
        self.rows_to_come = num_running

    @property
    def is_spent(self) -> bool:
        """Whether no row fits any more."""
        return self.tokens <= 0 or self.logits <= 0

    def chunk_length(self, item: ScheduledRequest) -> int:
        """How many tokens the next row may compute; 0 when the step is full."""
        tokens = self.tokens if item.cross is None else self.tokens - item.cross.num_to_compute
        if tokens <= 0 or self.logits <= 0:
            return 0
        length = item.num_wanted
        if length > 1:
            length = min(length, max(tokens - self.rows_to_come, 1))
        if item.scores_prompt:
            scored_before = max(item.num_scored - item.num_computed, 0)
            length = min(length, scored_before + max(self.logits - self.rows_to_come, 1))
        return length

    def spend(self, row: RowPlan) -> None:
        """Takes a planned row off."""
        self.tokens -= len(row.token_ids)
        if row.encoder is not None:
            self.tokens -= len(row.encoder.token_ids)
        self.logits -= row.needs_logits
        if row.score is not None:
            self.logits -= len(row.score.targets)


def blocks_missing(item: ScheduledRequest, length: int, block_size: int) -> int:
    """Blocks to grant before `length` more tokens can be computed."""
    return -(-(item.num_computed + length) // block_size) - len(item.block_ids)


def plan_row(item: ScheduledRequest, length: int, granted: list[int]) -> RowPlan:
    """The row that computes the request's next `length` tokens; `granted` are new blocks, already its own."""
    request = item.request
    start = item.num_computed
    end = start + length
    slot = item.slot
    if slot is None:
        raise RuntimeError(f"request {request.request_id} runs without a slot")
    is_due = end == len(item.token_ids) and request.max_generated > 0
    score = _score_span(item, start, end) if item.scores_prompt else None
    row = RowPlan(request.request_id, slot, start, item.token_ids[start:end], granted, is_due, score)
    cross = item.cross
    if cross is not None and not cross.is_computed:
        num_cached = sum(map(len, cross.parts[: cross.num_cached]))
        row = row._replace(encoder=EncoderInput(cross.token_ids, num_cached))
    if item.place is not None:
        row = row._replace(samples=False, beam=item.place.index, num_candidates=is_due * request.num_candidates)
    return row


def _score_span(item: ScheduledRequest, start: int, end: int) -> ScoreSpan | None:
    """The prompt tokens that positions start..end-1 predict and that were not scored before."""
    first = max(start, item.num_scored)
    last = min(end, item.request.prompt_length - 1)
    if first >= last:
        return None
    return ScoreSpan(first - start, item.token_ids[first + 1 : last + 1], item.request.sampling_params.top_n_logprobs)
