"""StepPlan and StepResult: what the scheduler decides for one step and what comes back.

Plain integers and Python values, so that a plan can be sent to other ranks. Knows nothing of tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from kilotron.errors import KilotronError
from kilotron.sampling_params import SamplingParams


class ScoreSpan(NamedTuple):
    """Prompt tokens whose log-probabilities are wanted: the span's tokens from `first` on predict `targets`."""

    first: int
    """Index within the row's tokens of this step."""
    targets: list[int]
    top_n: int = 0
    """Most likely tokens to list beside each target."""


class EncoderInput(NamedTuple):
    """An encoder's whole input, computed in this step because no earlier one did."""

    token_ids: list[int]
    """Not to be changed."""
    num_cached: int
    """Leading tokens whose keys and values the cross blocks hold already."""


class RowPlan(NamedTuple):
    """One row of a step: compute `token_ids`, the first of which stands at position `start`."""

    request_id: int
    slot: int
    """The row's place in per-request tables, kept while it is admitted."""
    start: int
    """Tokens computed before; the position of the first new token."""
    token_ids: list[int]
    block_ids: list[int]
    """Blocks granted for this step, in order of position, to be appended to the row's table."""
    samples: bool
    """Whether the last token's logits give a new token."""
    score: ScoreSpan | None = None
    encoder: EncoderInput | None = None
    """Encoder-decoder models: what is encoded before the row's tokens can look at it."""
    beam: int = 0
    """Which of the request's beams it is."""
    num_candidates: int = 0
    """Most likely next tokens wanted after the last token, for beam search, instead of one that is drawn."""

    @property
    def needs_logits(self) -> bool:
        """Whether something is made of the last token's logits."""
        return self.samples or self.num_candidates > 0


class Admission(NamedTuple):
    """A request enters a slot (again): all that per-slot tables need to know."""

    slot: int
    request_id: int
    token_ids: list[int]
    """Prompt and what was generated before a preemption. Not to be changed."""
    prompt_length: int
    cached_block_ids: list[int]
    """Blocks found in the prefix cache; the row's table starts with them."""
    sampling_params: SamplingParams
    seed: int
    end_ids: frozenset[int]
    bad_word_ids: tuple[tuple[int, ...], ...]
    is_beam: bool = False
    """Whether it is a beam of a request that is admitted already and that took over another beam's tokens."""
    cross_block_ids: tuple[int, ...] = ()
    """Encoder-decoder models: blocks of the encoder's output, all of them."""
    encoder_length: int = 0
    """Tokens of the encoder's input."""


class BeamMove(NamedTuple):
    """What becomes of a beam: it continues `parent`, one of the request's beams (itself, if it can), with a token."""

    beam: int
    parent: int
    token_id: int


NO_MOVES: Mapping[int, Sequence[BeamMove]] = MappingProxyType({})
"""Of a step after which no beam search goes on."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes. Admissions take effect before the rows."""

    step: int
    rows: list[RowPlan]
    admissions: list[Admission] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    """Ids of requests that were stopped to make room. They are waiting again, or were even admitted anew."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step, those of encoders included."""
        num_encoded = sum(len(row.encoder.token_ids) for row in self.rows if row.encoder is not None)
        return num_encoded + sum(len(row.token_ids) for row in self.rows)


class TokenScores(NamedTuple):
    """Log-probabilities of given tokens."""

    log_probs: list[float]
    top_n: list[dict[int, float]] | None
    """Most likely ids and the given one, per token; None when not asked."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave. Lists run over the plan's sampling rows, in order."""

    token_ids: list[int]
    scores: dict[int, TokenScores] = field(default_factory=dict)
    """Request id -> score of its new token, where asked."""
    prompt_scores: dict[int, TokenScores] = field(default_factory=dict)
    """Request id -> scores of its ScoreSpan's targets."""
    candidates: dict[tuple[int, int], list[tuple[int, float]]] = field(default_factory=dict)
    """(request id, beam) -> most likely next tokens and their log-probabilities, the best first."""
    faults: dict[int, KilotronError] = field(default_factory=dict)
    """Request id -> what went wrong with its row; its token means nothing."""
