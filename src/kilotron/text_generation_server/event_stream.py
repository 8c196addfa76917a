"""EventStream: server-sent events over raw ASGI. The response starts with the first event, so that an error before it
is still an ordinary error response."""

import asyncio
import logging
from typing import Self

from kilotron.text_generation_server.http_errors import http_error_of, is_for_the_log
from kilotron.text_generation_server.http_exchange import Headers, Send

_log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
DONE = b"data: [DONE]\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Sends events as they come and, where none come for long, comments that keep the connection open.

    Args:
        send: ASGI's.
        headers: further response headers.
        keep_alive_s: seconds of silence before a comment.
    """

    def __init__(self, send: Send, headers: Headers = (), *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._send = send
        self._headers = [*_HEADERS, *headers]
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._last_sent = self._loop.time()
        self._has_started = False
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        """An error after the first event becomes the last event; one before goes on."""
        if self._keeper is not None:
            self._keeper.cancel()
        if error is None or not isinstance(error, Exception) or not self._has_started:
            return False
        if is_for_the_log(error):
            _log.error("a stream failed", exc_info=error)
        event = http_error_of(error).to_event()
        await self._send({"type": "http.response.body", "body": event, "more_body": False})
        return True

    async def put(self, events: bytes) -> None:
        """Sends one or several whole events."""
        if not self._has_started:
            await self._start()
        self._last_sent = self._loop.time()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def finish(self, events: bytes = b"") -> None:
        """Sends the last events and `[DONE]`."""
        if not self._has_started:
            await self._start()
        await self._send({"type": "http.response.body", "body": events + DONE, "more_body": False})

    async def _start(self) -> None:
        self._has_started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def _keep_alive(self) -> None:
        while True:
            silence = self._loop.time() - self._last_sent
            if silence >= self._keep_alive_s:
                await self.put(b": keep-alive\n\n")
                silence = 0.0
            await asyncio.sleep(self._keep_alive_s - silence)
