"""What a conversation asks for its answers: a model in this process or a server, each in a module of its own."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = dict[str, str]


@dataclass(frozen=True)
class AnswerFigures:
    """What an answer cost; None is unknown."""

    prompt_tokens: int | None
    cached_tokens: int | None
    generated_tokens: int | None
    first_token_s: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class Answer:
    """An answer that has been started."""

    pieces: Generator[str]
    """Its text as it grows; closing it ends the request."""
    figures: Callable[[], AnswerFigures]
    """What it has cost so far."""


class AnswerSource(Protocol):
    """Whoever answers."""

    @property
    def name(self) -> str:
        """Of the model, for people."""

    def open(
        self,
        messages: Sequence[Message],
        sampling: Mapping[str, Any],
        *,
        is_stopped: Callable[[], bool],
        keeps_room: bool,
    ) -> Answer:
        """Starts an answer.

        Args:
            messages: the conversation, a user's message last.
            sampling: fields of SamplingParams that override the model's defaults.
            is_stopped: ends the answer once it says so.
            keeps_room: refuse messages that leave little of the context for an answer.

        Raises:
            PromptTooLongError: the messages do not fit.
            KilotronError: the answer cannot be started, or fails (raised by its pieces).
        """

    def describe_sampling(self, sampling: Mapping[str, Any]) -> str:
        """What answers are sampled with, for people.

        Raises:
            InvalidRequestError: they cannot be.
        """

    def describe(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """Names and values about the source and this conversation, the model first."""
