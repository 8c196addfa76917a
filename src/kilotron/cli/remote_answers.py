"""Answers of an OpenAI-compatible server."""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from kilotron.cli.answer_source import Answer, AnswerFigures, Message
from kilotron.cli.remote.server_error import ServerError, printable, read_error
from kilotron.cli.remote.server_session import ServerSession
from kilotron.errors import InvalidRequestError, PromptTooLongError, SamplingParamsError
from kilotron.sampling_params import SamplingParams

_DONE = b"[DONE]"
_CLIENT_ERRORS = range(400, 500)
_TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")
_TOO_LONG_WORDS = "maximum context length"

# Fields of SamplingParams -> fields of a request, where the names differ; None has no meaning for a server's chat.
_NAMES = {"num_tokens_to_generate": "max_tokens", "stop_words": "stop", "add_BOS": None, "logprobs": None}


class RemoteAnswers:
    """An AnswerSource.

    Args:
        server: who answers.
        model: its id there.
    """

    def __init__(self, server: ServerSession, model: str) -> None:
        self._server = server
        self._model = model

    @property
    def name(self) -> str:
        """The model's id and where it is."""
        return f"{self._model} at {self._server.address.url}"

    def open(
        self,
        messages: Sequence[Message],
        sampling: Mapping[str, Any],
        *,
        is_stopped: Callable[[], bool],
        keeps_room: bool,
    ) -> Answer:
        """Starts an answer, see AnswerSource; the server decides what fits."""
        fields = {"model": self._model, "messages": list(messages), "stream": True}
        fields |= {"stream_options": {"include_usage": True}} | _wire_fields(sampling)
        started = time.monotonic()
        try:
            events = self._server.stream("/v1/chat/completions", fields, is_stopped=is_stopped)
        except ServerError as error:
            if error.status in _CLIENT_ERRORS and _is_too_long(error):
                raise PromptTooLongError(str(error)) from error
            raise
        stream = _AnswerStream(events, is_stopped, started)
        return Answer(stream.run(), stream.figures)

    def describe_sampling(self, sampling: Mapping[str, Any]) -> str:
        """What the requests ask for, see AnswerSource."""
        fields = _wire_fields(sampling)
        asked = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        return f"{asked}, the rest as the server says" if asked else "as the server says"

    def describe(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """The model and the server; context and memory are the server's own business."""
        return [("model", self._model), ("server", f"{self._server.address.url} (memory and context: its /metrics)")]


class _AnswerStream:
    """Text out of the events of one answer."""

    def __init__(self, events: Generator[bytes], is_stopped: Callable[[], bool], started: float) -> None:
        self._events = events
        self._is_stopped = is_stopped
        self._started = started
        self._first: float | None = None
        self._last: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._is_finished = False

    def run(self) -> Generator[str]:
        with closing(self._events):
            for event in self._events:
                if event == _DONE:
                    return
                text = self._read(event)
                if text:
                    self._last = time.monotonic()
                    self._first = self._first or self._last
                    yield text
        if not self._is_finished and not self._is_stopped():
            raise ServerError("the server ended its answer in the middle")

    def figures(self) -> AnswerFigures:
        usage = self._usage
        generated = _count(usage.get("completion_tokens"))
        tokens_per_s = None
        if generated is not None and self._first is not None and self._last is not None and self._last > self._first:
            tokens_per_s = (generated - 1) / (self._last - self._first)
        details = usage.get("prompt_tokens_details")
        return AnswerFigures(
            prompt_tokens=_count(usage.get("prompt_tokens")),
            cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, Mapping) else None,
            generated_tokens=generated,
            first_token_s=None if self._first is None else self._first - self._started,
            tokens_per_s=tokens_per_s,
        )

    def _read(self, event: bytes) -> str:
        try:
            chunk = json.loads(event)
        except ValueError:
            raise ServerError(f"the server sent an event that is no JSON: {printable(repr(event))}") from None
        if not isinstance(chunk, Mapping):
            raise ServerError(f"the server sent an event that is no object: {printable(repr(event))}")
        if chunk.get("error"):
            message, code = read_error(chunk)
            raise ServerError(f"the server's answer failed: {message}", code=code)
        if isinstance(chunk.get("usage"), Mapping):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping):
            return ""
        self._is_finished = self._is_finished or choice.get("finish_reason") is not None
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, Mapping) else None
        return text if isinstance(text, str) else ""


def _wire_fields(sampling: Mapping[str, Any]) -> dict[str, Any]:
    SamplingParams.from_dict({name: value for name, value in sampling.items() if name != "logprobs"})
    if sampling.get("n", 1) != 1:
        raise InvalidRequestError("a chat has one answer at a time, so n must be 1")
    if sampling.get("add_BOS"):
        raise SamplingParamsError("add_BOS is for a model in this process; a server's chat template decides that")
    wire_names = {name: _NAMES.get(name, name) for name in sampling}
    return {wire_name: sampling[name] for name, wire_name in wire_names.items() if wire_name is not None}


def _is_too_long(error: ServerError) -> bool:
    return error.code in _TOO_LONG_CODES or _TOO_LONG_WORDS in str(error)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None
