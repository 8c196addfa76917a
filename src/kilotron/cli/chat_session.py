"""One conversation with a model: its messages, its sampling fields, and answers as they grow. Knows no terminal."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kilotron.cli.answer_stream import stream_text
from kilotron.cli.loaded_model import LoadedModel
from kilotron.errors import InvalidRequestError, PromptTooLongError

if TYPE_CHECKING:
    from kilotron.inference_request import InferenceRequest
    from kilotron.sampling_params import SamplingParams

Message = dict[str, str]

# Tokens kept free for the answer when no length is asked for: a share of the context, and at most so many.
_ANSWER_SHARE = 4
_ANSWER_TOKENS = 1024


@dataclass(frozen=True)
class AnswerFigures:
    """What the last answer cost."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    first_token_s: float | None
    tokens_per_s: float | None


class ChatSession:
    """Messages and answers.

    Args:
        loaded: the model.
        sampling: fields that override the model's defaults.
        system: what the model is told first.
    """

    def __init__(self, loaded: LoadedModel, sampling: Mapping[str, Any], system: str | None = None) -> None:
        self.loaded = loaded
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

    @property
    def params(self) -> "SamplingParams":
        """What an answer is sampled with."""
        return self.loaded.sampling_params(self.sampling)

    def answer(self, text: str, *, is_stopped: Callable[[], bool]) -> Iterator[str]:
        """Yields the answer as it grows, until it ends or `is_stopped`; a message that gets none is forgotten.

        Raises:
            InvalidRequestError: the message is too long, or otherwise refused.
            KilotronError: the request failed.
        """
        self.turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            request = self._build_request()
            try:
                for piece in stream_text(self.loaded.llm.engine, request, is_stopped):
                    pieces.append(piece)
                    yield piece
            finally:
                self.figures = _figures_of(request)
        finally:
            if pieces:
                self.turns.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.turns.pop()

    def reset(self) -> None:
        """Forgets the conversation; the system message stays."""
        self.turns.clear()
        self.figures = None

    def count_tokens(self) -> int:
        """Tokens of the whole conversation."""
        return len(self._tokens()) if self.messages else 0

    def _build_request(self) -> "InferenceRequest":
        params = self.params
        limit = self.loaded.llm.config.max_sequence_length
        wanted = params.num_tokens_to_generate
        tokens = self._fit(limit - (wanted or min(limit // _ANSWER_SHARE, _ANSWER_TOKENS)))
        if len(tokens) >= limit:
            raise PromptTooLongError(
                f"the message takes {len(tokens)} tokens, but the context length is {limit}; shorten it"
            )
        params.num_tokens_to_generate = min(wanted or limit, limit - len(tokens))
        return self.loaded.llm.engine.build_streaming(tokens, params)

    def _fit(self, limit: int) -> list[int]:
        """The conversation's ids, its oldest turns dropped until they fit or only the last message is left."""
        tokens = self._tokens()
        before = len(self.turns)
        while len(tokens) > limit and len(self.turns) > 1:
            del self.turns[0]
            while self.turns[0]["role"] != "user":
                del self.turns[0]
            tokens = self._tokens()
        self.num_dropped = before - len(self.turns)
        return tokens

    def _tokens(self) -> list[int]:
        from kilotron.apis.prompts import chat_prompts

        return list(chat_prompts(self.loaded.llm.tokenizer, self.messages, {})[0])  # type: ignore[arg-type]


def check_sampling(session: ChatSession, changes: Mapping[str, Any]) -> None:
    """Raises:
    InvalidRequestError: the session cannot be sampled with these fields on top.
    """
    params = session.loaded.sampling_params(session.sampling, changes)
    if params.n != 1:
        raise InvalidRequestError("a chat has one answer at a time, so n must be 1")


def _figures_of(request: "InferenceRequest") -> AnswerFigures:
    tpot = request.tpot
    return AnswerFigures(
        prompt_tokens=request.prompt_length,
        cached_tokens=request.num_cached_tokens,
        generated_tokens=request.generated_length,
        first_token_s=request.ttft,
        tokens_per_s=1 / tpot if tpot else None,
    )
