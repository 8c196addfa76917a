"""One conversation: its messages, its sampling fields, answers as they grow. Knows no terminal and not who answers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

from kilotron.cli.answer_source import Answer, AnswerFigures, AnswerSource, Message
from kilotron.errors import PromptTooLongError


class ChatSession:
    """Messages and answers.

    Args:
        source: who answers.
        sampling: fields that override the model's defaults.
        system: what the model is told first.
    """

    def __init__(self, source: AnswerSource, sampling: Mapping[str, Any], system: str | None = None) -> None:
        self.source = source
        self.sampling = dict(sampling)
        self.system = system
        self.turns: list[Message] = []
        """User and assistant messages, oldest first."""
        self.num_dropped = 0
        """Messages that the last answer had to leave out, and that are gone."""
        self.figures: AnswerFigures | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation with its system message."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + self.turns

    def answer(self, text: str, *, is_stopped: Callable[[], bool]) -> Iterator[str]:
        """Yields the answer as it grows, until it ends or `is_stopped`; a message that gets none is forgotten.

        Raises:
            InvalidRequestError: the message is too long, or otherwise refused.
            KilotronError: the request failed.
        """
        self.turns.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            answer = self._open(is_stopped)
            try:
                with closing(answer.pieces) as pieces:
                    for piece in pieces:
                        said.append(piece)
                        yield piece
            finally:
                self.figures = answer.figures()
        finally:
            if said:
                self.turns.append({"role": "assistant", "content": "".join(said)})
            else:
                self.turns.pop()

    def reset(self) -> None:
        """Forgets the conversation; the system message stays."""
        self.turns.clear()
        self.figures = None

    def _open(self, is_stopped: Callable[[], bool]) -> Answer:
        """The answer to the last message, the oldest turns dropped until it fits or only that message is left."""
        self.num_dropped = 0
        while True:
            can_drop = len(self.turns) > 1
            try:
                return self.source.open(self.messages, self.sampling, is_stopped=is_stopped, keeps_room=can_drop)
            except PromptTooLongError:
                if not can_drop:
                    raise
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        before = len(self.turns)
        del self.turns[0]
        while self.turns[0]["role"] != "user":
            del self.turns[0]
        self.num_dropped += before - len(self.turns)
