"""InferenceRequest and Status: one request from arrival to result, and what the caller gets back.

Holds plain Python values only. Who runs when is `scheduling/`; what a token does to the request is
`text_generation_controllers/`.
"""

import time
from dataclasses import dataclass, field
from enum import IntEnum

from kilotron.errors import KilotronError
from kilotron.sampling_params import SamplingParams


class Status(IntEnum):
    """A request's life in order; everything from COMPLETED on is final."""

    WAITING_IN_QUEUE = 1
    ACTIVE_AND_GENERATING_TOKENS = 2
    ACTIVE_BUT_NOT_GENERATING_TOKENS = 3
    """Its prompt is being computed, or it was preempted and waits for room."""
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self >= Status.COMPLETED


@dataclass(slots=True)
class RequestTimings:
    """When things happened, in seconds of the monotonic clock; None where they have not."""

    arrival: float
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None

    @property
    def queue_s(self) -> float | None:
        """Seconds from arrival until the request first ran."""
        return None if self.admitted is None else self.admitted - self.arrival

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first generated token."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def latency_s(self) -> float | None:
        """Seconds from arrival to the end."""
        return None if self.finished is None else self.finished - self.arrival

    def tpot_s(self, num_generated: int) -> float | None:
        """Seconds per token after the first."""
        if self.first_token is None or self.finished is None or num_generated < 2:
            return None
        return (self.finished - self.first_token) / (num_generated - 1)


@dataclass(frozen=True, slots=True)
class BeamResult:
    """One of the sequences that beam search found."""

    token_ids: list[int]
    """What was generated, its end id included."""
    text: str
    score: float
    """`cumulative_log_prob` over the length to the power of `length_penalty`."""
    log_probs: list[float]
    """One per token, as minimum length, bad words and penalties left them."""
    cumulative_log_prob: float
    """Their sum."""
    finish_reason: str
    """"stop", "length", or that of the request where it did not get to its end."""


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """One prompt and, as it is generated, its continuation.

    Callers read the `generated_*`, `prompt_*`, `finish_reason`, `error` and timing fields; the engine writes them.
    """

    request_id: int
    prompt_tokens: list[int]
    sampling_params: SamplingParams
    timings: RequestTimings = field(default_factory=lambda: RequestTimings(time.monotonic()))
    prompt: str | None = None
    """The prompt's text, in an encoder-decoder model the decoder's; None when ids were given, or nothing."""
    encoder_prompt: str | None = None
    """The encoder's text, for encoder-decoder models; None when ids were given."""
    encoder_tokens: list[int] = field(default_factory=list)
    """What the encoder reads; empty for decoder-only models."""
    max_generated: int = 0
    """Tokens it may generate, resolved against the context length."""
    seed: int = 0
    """Resolved: the caller's, or drawn."""
    end_ids: frozenset[int] = frozenset()
    """Ids that end it, resolved from termination_id, stop_token_ids and the model's own."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """The `bad_words` as token ids."""
    cache_salt: str = ""
    """Only requests with the same salt share prefix-cache blocks."""
    deadline: float | None = None
    """Monotonic time after which it is cancelled."""
    choice_index: int = 0
    choices: list["InferenceRequest"] = field(default_factory=list)
    """All n continuations of this prompt, itself first."""
    status: Status = Status.WAITING_IN_QUEUE
    generated_tokens: list[int] = field(default_factory=list)
    generated_text: str = ""
    generated_segments: list[str] | None = None
    generated_log_probs: list[float] | None = None
    """One per generated token, when asked."""
    generated_top_n_logprobs: list[dict[str, float]] | None = None
    """Token text -> log-probability, one dict per generated token."""
    generated_top_n_ids: list[dict[int, float]] | None = None
    """The same by token id, which is exact where two ids share a text."""
    prompt_log_probs: list[float] | None = None
    """One per prompt token but the first, when asked."""
    prompt_top_n_logprobs: list[dict[str, float]] | None = None
    prompt_top_n_ids: list[dict[int, float]] | None = None
    beams: list[BeamResult] = field(default_factory=list)
    """What beam search found, best first, `num_return_gen` at most; the best one is in `generated_*` too."""
    finish_reason: str | None = None
    """"stop", "length", "abort", "deadline" or "error"."""
    stop_reason: int | str | None = None
    """The id or text that stopped it; None for the model's own end of sequence."""
    error: KilotronError | None = None
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at first admission, and encoder tokens if all were."""
    num_preemptions: int = 0

    @property
    def inference_parameters(self) -> SamplingParams:
        """Megatron's older name of `sampling_params`."""
        return self.sampling_params

    @property
    def prompt_length(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt_tokens)

    @property
    def num_candidates(self) -> int:
        """Next tokens that each beam looks at, enough to go on when as many as can be are end ids; 0 without beams."""
        params = self.sampling_params
        return max(2, 1 + len(self.end_ids)) * params.beam_width if params.is_beam_search else 0

    @property
    def generated_length(self) -> int:
        """Number of generated tokens."""
        return len(self.generated_tokens)

    @property
    def is_finished(self) -> bool:
        """Whether it ended, in whatever way."""
        return self.status.is_final

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token."""
        return self.timings.ttft_s

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first."""
        return self.timings.tpot_s(len(self.generated_tokens))


DynamicInferenceRequest = InferenceRequest
"""Megatron's name of a request of its dynamic engine; here all engines have the same."""
