"""One streamed request under load: its chunks as they come, and when they came.

This is the hot loop of a load generator that shares its cores with the server, so a chunk costs few Python steps: a
typed decoder that skips what nobody asks for, and no task switch between the socket and the clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kilotron.cli.remote.http_exchange import Connector
from kilotron.cli.remote.server_error import ServerError, read_error
from kilotron.cli.remote.server_sent_events import EventParser

_DONE = b"[DONE]"


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds."""

    started: float
    """By the monotonic clock."""
    input_len: int
    """Tokens, as the server counts them; else as they were meant."""
    output_len: int = 0
    """Tokens, as the server counts them; else chunks."""
    is_counted: bool = False
    """Whether the server said how many tokens there were."""
    ttft_s: float = 0.0
    """Until the first chunk with a choice."""
    latency_s: float = 0.0
    """Until the last chunk with a choice."""
    itls_s: list[float] = field(default_factory=list)
    """Between a chunk with a choice and the next one."""
    text: str = ""
    error: str = ""
    """Empty for a success."""
    status: int = 0
    """Of the HTTP response when it was no 200."""

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first; None when there was none."""
        return (self.latency_s - self.ttft_s) / (self.output_len - 1) if self.output_len > 1 else None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


async def send(
    connector: Connector,
    request: bytes,
    input_len: int,
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Sends a request, and comes back when all has been received or it has failed.

    Args:
        connector: of the server.
        request: made by the connector; asks for a stream.
        input_len: tokens that the prompt should have.
        timeout_s: for the whole request.
        clock: tells the time in seconds.
    """
    received = _Received(clock)
    outcome = Outcome(started=clock(), input_len=input_len)
    try:
        await connector.stream(request, received.take, timeout_s=timeout_s)
        received.check_end()
    except ServerError as error:
        outcome.error = str(error)
        outcome.status = error.status
    received.fill(outcome)
    return outcome


class _Received:
    """What came of one response so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._feed = EventParser().feed
        self._first = 0.0
        self._last = 0.0
        self._gaps: list[float] = []
        self._texts: list[str] = []
        self._usage: _Usage | None = None
        self._is_done = False

    def take(self, piece: bytes) -> None:
        now = self._clock()
        for event in self._feed(piece):
            if event == _DONE:
                self._is_done = True
                continue
            try:
                chunk = _decode(event)
            except msgspec.DecodeError as error:
                raise ServerError(f"the server sent an event that is no chunk: {error}") from error
            if chunk.choices:
                self._take_choice(chunk.choices[0], now)
            elif chunk.usage is not None:
                self._usage = chunk.usage
            if chunk.error is not None:
                raise ServerError(f"the stream failed: {read_error({'error': chunk.error})[0]}")

    def check_end(self) -> None:
        """Raises:
        ServerError: the stream was not whole.
        """
        if not self._is_done:
            raise ServerError("the stream ended without [DONE]")
        if not self._first:
            raise ServerError("the stream had no choice in it")

    def fill(self, outcome: Outcome) -> None:
        """Writes down what there was, also of a request that failed."""
        outcome.text = "".join(self._texts)
        outcome.itls_s = self._gaps
        if self._first:
            outcome.ttft_s = self._first - outcome.started
            outcome.latency_s = self._last - outcome.started
            outcome.output_len = len(self._gaps) + 1
        if self._usage is not None:
            outcome.is_counted = True
            outcome.output_len = self._usage.completion_tokens
            outcome.input_len = self._usage.prompt_tokens or outcome.input_len

    def _take_choice(self, choice: _Choice, now: float) -> None:
        if self._first:
            self._gaps.append(now - self._last)
        else:
            self._first = now
        self._last = now
        text = choice.text if choice.delta is None else choice.delta.content
        if text:
            self._texts.append(text)
