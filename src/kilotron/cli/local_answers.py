"""Answers of a model that is loaded in this process."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kilotron.cli.answer_source import Answer, AnswerFigures, Message
from kilotron.cli.answer_stream import stream_text
from kilotron.cli.loaded_model import LoadedModel
from kilotron.cli.output import format_bytes
from kilotron.cli.sampling_layers import describe_sampling
from kilotron.errors import ChatTemplateError, InvalidRequestError, PromptTooLongError

if TYPE_CHECKING:
    from kilotron.inference_request import InferenceRequest
    from kilotron.sampling_params import SamplingParams

# Tokens kept free for the answer when no length is asked for: a share of the context, and at most so many.
_ANSWER_SHARE = 4
_ANSWER_TOKENS = 1024


class LocalAnswers:
    """An AnswerSource.

    Raises:
        ChatTemplateError: the model has no chat template.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        tokenizer = loaded.llm.tokenizer
        if tokenizer is None or tokenizer.chat_template is None:
            raise ChatTemplateError(
                f"{loaded.name} has no chat template, so it does not know who speaks; "
                'it can continue texts: kilotron generate MODEL -p "Once upon a time"'
            )
        self._loaded = loaded

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self._loaded.name

    def open(
        self,
        messages: Sequence[Message],
        sampling: Mapping[str, Any],
        *,
        is_stopped: Callable[[], bool],
        keeps_room: bool,
    ) -> Answer:
        """Starts an answer, see AnswerSource."""
        params = self._params(sampling)
        limit = self._loaded.llm.config.max_sequence_length
        wanted = params.num_tokens_to_generate
        room = (wanted or min(limit // _ANSWER_SHARE, _ANSWER_TOKENS)) if keeps_room else 1
        tokens = self._tokens(messages)
        if len(tokens) > limit - room:
            raise PromptTooLongError(
                f"the message takes {len(tokens)} tokens, but the context length is {limit}; shorten it"
            )
        params.num_tokens_to_generate = min(wanted or limit, limit - len(tokens))
        request = self._loaded.llm.engine.build_streaming(tokens, params)
        return Answer(self._stream(request, is_stopped), lambda: _figures_of(request))

    def describe_sampling(self, sampling: Mapping[str, Any]) -> str:
        """What differs from plain sampling, see AnswerSource."""
        return describe_sampling(self._params(sampling))

    def describe(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """The model, the context and the memory."""
        import psutil

        llm = self._loaded.llm
        num_tokens = len(self._tokens(messages)) if messages else 0
        return [
            ("model", f"{self.name}, {llm.config.dtype}, {llm.kernels_name} kernels"),
            ("context", f"{num_tokens} of {llm.config.max_sequence_length} tokens"),
            ("memory", f"{format_bytes(psutil.Process().memory_info().rss)} resident"),
            ("KV cache", f"{format_bytes(llm.config.kv_cache_bytes)} set aside"),
        ]

    def _stream(self, request: "InferenceRequest", is_stopped: Callable[[], bool]) -> Generator[str]:
        for piece in stream_text(self._loaded.llm.engine, request, is_stopped):
            self._loaded.mark("first token")
            yield piece

    def _params(self, sampling: Mapping[str, Any]) -> "SamplingParams":
        params = self._loaded.sampling_params(sampling)
        if params.n != 1:
            raise InvalidRequestError("a chat has one answer at a time, so n must be 1")
        return params

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        from kilotron.apis.prompts import chat_prompts

        return list(chat_prompts(self._loaded.llm.tokenizer, messages, {})[0])  # type: ignore[arg-type]


def _figures_of(request: "InferenceRequest") -> AnswerFigures:
    tpot = request.tpot
    return AnswerFigures(
        prompt_tokens=request.prompt_length,
        cached_tokens=request.num_cached_tokens,
        generated_tokens=request.generated_length,
        first_token_s=request.ttft,
        tokens_per_s=1 / tpot if tpot else None,
    )
