"""The request fields of beam search, which are vLLM's: what they ask of the engine, and a beam's score in an answer."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kilotron.coordinator.wire import Finish
from kilotron.sampling_params import MAX_BEAM_STOP_IDS, MAX_BEAM_WIDTH
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.response_types import ChatChoice, CompletionChoice

MAX_CHOICES = 128

_NEVER = "never"
_LENGTH_PENALTY = "A beam's score is its log-probability over its length to this power."
# What beam search cannot do, and why. Flags of log-probabilities may be set, numbers of likely tokens may not.
_NOT_WITH_BEAMS = {
    "stream": "cannot stream: which beam is best is known only at the end",
    "stop": "does not look for stop texts; end beams by stop_token_ids",
    "logprobs": "lists no likely tokens; use 0",
    "top_logprobs": "lists no likely tokens; use 0",
    "prompt_logprobs": "lists no likely tokens; use 0",
}


class BeamFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """With `use_beam_search`, `best_of` beams (else `n`) search together, and the best `n` are the choices."""

    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES, description="With beam search its beams, else n.")] | None = None
    use_beam_search: Annotated[bool, Meta(description="best_of beams, else n; the best n are the choices.")] | None = (
        None
    )
    length_penalty: Annotated[float, Meta(ge=-10, le=10, description=_LENGTH_PENALTY)] | None = None
    early_stopping: (
        Annotated[bool, Meta(description="End the search as soon as there are enough finished beams.")]
        | Annotated[str, Meta(extra_json_schema={"enum": [_NEVER]}, description="Only when none can become better.")]
        | None
    ) = None

    @property
    def num_choices(self) -> int:
        """Continuations of each prompt."""
        return self.n or 1

    @property
    def beam_width(self) -> int:
        """Beams of each prompt; 1 without beam search."""
        return (self.best_of or self.num_choices) if self.use_beam_search else 1

    @property
    def beam_values(self) -> dict[str, Any]:
        """Fields of SamplingParams."""
        if not self.use_beam_search:
            return {}
        values = {"beam_width": self.beam_width, "n": 1, "num_return_gen": self.num_choices}
        given = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return values | {name: value for name, value in given.items() if value is not None}

    def check_beams(self) -> None:
        """Checks what concerns several fields.

        Raises:
            HttpError: 400, naming one of them.
        """
        if isinstance(self.early_stopping, str) and self.early_stopping != _NEVER:
            message = f'early_stopping must be true, false or "{_NEVER}", not {self.early_stopping[:40]!r}'
            raise _wrong("early_stopping", message)
        if not self.use_beam_search:
            self._check_unused()
            return
        if not 1 < self.beam_width <= MAX_BEAM_WIDTH:
            raise _wrong("best_of", f"use_beam_search needs 2 to {MAX_BEAM_WIDTH} beams: set best_of, or n")
        if self.num_choices > self.beam_width:
            raise _wrong("n", f"n={self.n} exceeds best_of={self.best_of}, the number of beams")
        self._check_company()

    def check_width(self, max_requests: int) -> None:
        """Checks the beams against what the engine runs at once.

        Raises:
            HttpError: 400, naming the field that says how many there are.
        """
        if self.beam_width > max_requests:
            message = f"this engine runs {max_requests} sequences at once, fewer than {self.beam_width} beams"
            raise _wrong("best_of" if self.best_of else "n", message)

    def _check_company(self) -> None:
        """What cannot be had together with beam search."""
        for name, why in _NOT_WITH_BEAMS.items():
            value = getattr(self, name, None)
            if value and (value is not True or name == "stream"):
                raise _wrong(name, f"use_beam_search {why}", "unsupported_parameter")
        num_stop_ids = len(getattr(self, "stop_token_ids", None) or ())
        if num_stop_ids > MAX_BEAM_STOP_IDS:
            message = f"use_beam_search takes at most {MAX_BEAM_STOP_IDS} stop_token_ids, not {num_stop_ids}"
            raise _wrong("stop_token_ids", message)
        if getattr(self, "max_tokens", None) == 0:
            raise _wrong("max_tokens", "max_tokens: must be at least 1 with use_beam_search")

    def _check_unused(self) -> None:
        if self.best_of not in (None, 1, self.num_choices):
            message = (
                f"best_of={self.best_of} must equal n={self.num_choices}: candidates are not generated to be dropped; "
                "with use_beam_search it is the number of beams"
            )
            raise _wrong("best_of", message, "unsupported_parameter")
        if self.length_penalty not in (None, 1):
            raise _wrong("length_penalty", f"length_penalty={self.length_penalty} needs use_beam_search=true")
        if self.early_stopping:
            raise _wrong("early_stopping", f"early_stopping={self.early_stopping} needs use_beam_search=true")


def add_score(choice: CompletionChoice | ChatChoice, finish: Finish) -> None:
    """Tells a choice's score if it is a beam."""
    if finish.beams:
        choice.score, choice.cumulative_logprob = finish.beams[0].score, finish.beams[0].cumulative_log_prob


def _wrong(param: str, message: str, code: str = "invalid_value") -> HttpError:
    return HttpError(400, message, param=param, code=code)
