"""H11HttpProtocol: the same bounds over uvicorn's h11 connection, for installations without httptools.

h11 takes bare line feeds and folded headers, so heads are scanned here before it sees them; and it is not given
pipelined requests, because their heads would pass unscanned.
"""

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from kilotron.text_generation_server.http_connection import BoundedConfig, BoundedConnection, Phase
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.text_generation_server.request_head import RequestMeter, check_head, malformed

_END_OF_HEAD = b"\r\n\r\n"
_NOT_PROPER_LINES = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]")


class HeadScanner:
    """Looks at the bytes of one head as they come, before h11 forgives what it should not."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._head = bytearray()

    def start(self) -> None:
        """A new head begins."""
        self._head.clear()

    def add(self, data: bytes) -> None:
        """More bytes of the head, or the rest of it and what follows; raises HttpError if it is not acceptable."""
        searched = max(0, len(self._head) - len(_END_OF_HEAD))
        self._head += data
        end = self._head.find(_END_OF_HEAD, searched)
        if end >= 0:
            del self._head[end + len(_END_OF_HEAD) :]
        url_end = self._head.find(b"\r\n")
        if (url_end if url_end >= 0 else len(self._head)) > self._limits.max_url_bytes + len("OPTIONS  HTTP/1.1"):
            raise HttpError(414, f"the URL is longer than {self._limits.max_url_bytes} bytes", code="uri_too_long")
        is_too_large = len(self._head) > self._limits.max_header_bytes
        if is_too_large or self._head.count(b"\n") > self._limits.max_headers + 2:
            raise HttpError(431, "the request's headers are too large or too many", code="headers_too_large")
        if _NOT_PROPER_LINES.search(self._head, max(0, searched - 1)):
            raise malformed("the request's lines must end in CR LF and not be folded")


class _StrictParser(h11.Connection):
    """h11's parser with our rules for heads and chunks; it reports what breaks one as h11 reports its own."""

    def __init__(self, limits: HttpLimits, meter: RequestMeter) -> None:
        super().__init__(h11.SERVER, limits.max_header_bytes)
        self._meter = meter
        self.fault: HttpError | None = None

    def next_event(self) -> Any:
        event = super().next_event()
        try:
            if isinstance(event, h11.Request):
                check_head(event.http_version.decode("ascii"), list(event.headers))
            elif isinstance(event, h11.Data) and event.chunk_start:
                self._meter.add_chunk()
        except HttpError as error:
            self.fault = error
            raise h11.RemoteProtocolError(error.message) from error
        return event


class H11HttpProtocol(BoundedConnection, H11Protocol):  # type: ignore[misc]  # the mixin is typed for httptools
    """One connection, parsed by h11."""

    def __init__(
        self,
        config: BoundedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = self._parser = _StrictParser(config.limits, self.meter)
        self._scanner = HeadScanner(config.limits)

    def data_received(self, data: bytes) -> None:
        """Scan a head, then let h11 parse it; its objections end the connection with an error object."""
        if self.is_discarding:
            return
        self._unset_keepalive_if_required()
        if self.conn.their_state is h11.DONE:
            self._leave_pipelined()
            return
        if self.conn.their_state is h11.IDLE:
            if self.phase is Phase.IDLE:
                data = data.lstrip(b"\r\n")  # empty lines before a request are to be ignored
                self.start_head_timer()
            if not data or not self._scan(data):
                return
        super().data_received(data)
        self._follow()

    def _leave_pipelined(self) -> None:
        """Close after the response that is due; the peer may send further requests elsewhere."""
        self.is_discarding = True
        self.cycle.keep_alive = False

    def _scan(self, data: bytes) -> bool:
        if self.phase is Phase.IDLE:
            self.phase = Phase.HEAD
            self.meter.start()
            self._scanner.start()
        try:
            self._scanner.add(data)
        except HttpError as error:
            self.refuse(error)
            return False
        return True

    def _follow(self) -> None:
        """Bring the phase in line with what h11 has read."""
        if self.is_discarding:
            return
        if self.conn.their_state is not h11.IDLE:
            self.stop_head_timer()
            self.phase = Phase.BODY if self.conn.their_state is h11.SEND_BODY else Phase.IDLE
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self._leave_pipelined()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's hook for what the parser objects to."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        self.phase = (
            Phase.BODY if is_answering else Phase.HEAD
        )  # nothing is pipelined, so what runs is what is at fault
        self.refuse(self._parser.fault or malformed("the request is not proper HTTP"))

    def on_response_complete(self) -> None:
        if self.phase is Phase.BODY:
            self.close()
        super().on_response_complete()
