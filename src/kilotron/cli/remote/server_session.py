"""A server asked from a program that has no event loop of its own: events one by one, with a place to stop in between.

Waits, within limits, for a server that loads or is full.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from kilotron.cli.output import note
from kilotron.cli.remote.http_exchange import Connector
from kilotron.cli.remote.server_address import ServerAddress
from kilotron.cli.remote.server_error import ServerError
from kilotron.cli.remote.server_sent_events import EventParser

Result = TypeVar("Result")

_UNAVAILABLE = 503
_UNAUTHORIZED = (401, 403)
_LOADING_S = 900.0
_BUSY_S = 60.0
_PAUSE_S = (0.1, 30.0)  # least and most between two attempts
_TICK_S = 0.1  # how late a stop may be noticed
_ANSWER_S = 3600.0
_QUESTION_S = 30.0


class ServerSession:
    """Questions to one server.

    Args:
        address: where it is.
        loading_s: how long to wait for a server that says that it is loading.
    """

    def __init__(self, address: ServerAddress, *, loading_s: float = _LOADING_S) -> None:
        self.address = address
        self._loading_s = loading_s
        self._connector = Connector(address)
        self._runner = asyncio.Runner()

    def first_model(self) -> str:
        """The id of the first model that the server has.

        Raises:
            ServerError: it has none, or does not say so.
        """
        body = self._until_ready(lambda: self._get("/v1/models"), is_stopped=bool)
        try:
            return str(json.loads(body or b"")["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ServerError(
                f"{self.address.url}/v1/models names no model; is it an OpenAI-compatible server?"
            ) from None

    def vocab_size(self) -> int | None:
        """How many token ids the server knows; None when it does not say."""
        try:
            found = json.loads(self._get("/tokenizer_info"))["vocab_size"]
        except (ServerError, ValueError, LookupError, TypeError):
            return None
        return found if isinstance(found, int) and found > 0 else None

    def stream(self, path: str, fields: Mapping[str, Any], *, is_stopped: Callable[[], bool]) -> Generator[bytes]:
        """Posts JSON and yields the data of the events that come back, until they end or `is_stopped`.

        Leaving it early closes the connection, which ends the request at the server.

        Raises:
            ServerError: at once when the server refuses; from the generator when the stream breaks.
        """
        request = self._connector.post_request(path, json.dumps(fields).encode())
        events = self._until_ready(lambda: self._open(request, is_stopped), is_stopped)
        return _nothing() if events is None else events.run(is_stopped)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def _get(self, path: str) -> bytes:
        return self._runner.run(self._connector.get(path, timeout_s=_QUESTION_S))

    def _open(self, request: bytes, is_stopped: Callable[[], bool]) -> "_Events":
        events = _Events(self._runner, self._connector, request)
        try:
            events.wait(is_stopped)
        except BaseException:
            events.close()
            raise
        return events

    def _until_ready(self, attempt: Callable[[], Result], is_stopped: Callable[[], bool]) -> Result | None:
        """None when it was stopped while waiting."""
        started = time.monotonic()
        told = ""
        while True:
            try:
                return attempt()
            except ServerError as error:
                if error.status in _UNAUTHORIZED:
                    raise _without_access(error) from error
                limit_s = self._loading_s if _is_loading(error) else _BUSY_S
                if error.status != _UNAVAILABLE or time.monotonic() - started > limit_s:
                    raise
                if str(error) != told:
                    told = str(error)
                    note(f"{self.address.url} is not ready: {told}; waiting")
                pause_s = 1.0 if error.retry_after_s is None else error.retry_after_s
            if not _pause(min(max(pause_s, _PAUSE_S[0]), _PAUSE_S[1]), is_stopped):
                return None


class _Events:
    """The events of one response, while the loop runs in short turns."""

    def __init__(self, runner: asyncio.Runner, connector: Connector, request: bytes) -> None:
        self._runner = runner
        self._events: deque[bytes] = deque()
        self._parser = EventParser()
        self._is_news = asyncio.Event()
        self._task = runner.get_loop().create_task(self._receive(connector, request))

    def wait(self, is_stopped: Callable[[], bool]) -> bool:
        """Whether there is an event now; False at the end, and when it was stopped."""
        while not self._events:
            if self._task.done():
                self._task.result()
                return False
            if is_stopped():
                return False
            self._runner.run(self._turn())
        return True

    def run(self, is_stopped: Callable[[], bool]) -> Generator[bytes]:
        try:
            while not is_stopped() and self.wait(is_stopped):
                yield self._events.popleft()
        finally:
            self.close()

    def close(self) -> None:
        self._task.cancel()
        self._runner.run(asyncio.wait([self._task]))
        if not self._task.cancelled():
            self._task.exception()  # it has been raised already, or nobody waits for it any more

    async def _receive(self, connector: Connector, request: bytes) -> None:
        try:
            await connector.stream(request, self._take, timeout_s=_ANSWER_S)
        finally:
            self._is_news.set()

    def _take(self, piece: bytes) -> None:
        self._events += self._parser.feed(piece)
        self._is_news.set()

    async def _turn(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_TICK_S):
                await self._is_news.wait()
        self._is_news.clear()


def _nothing() -> Generator[bytes]:
    yield from ()


def _pause(pause_s: float, is_stopped: Callable[[], bool]) -> bool:
    """Whether the pause ended by itself."""
    end = time.monotonic() + pause_s
    while (left := end - time.monotonic()) > 0:
        if is_stopped():
            return False
        time.sleep(min(left, _TICK_S))
    return True


def _is_loading(error: ServerError) -> bool:
    return "loading" in f"{error.code} {error}".lower()


def _without_access(error: ServerError) -> ServerError:
    return ServerError(
        f"the server wants another key: {error}; set KILOTRON_API_KEY, or give --api-key-file FILE",
        status=error.status,
        code=error.code,
    )
