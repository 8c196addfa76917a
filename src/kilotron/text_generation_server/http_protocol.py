"""HttpProtocol: uvicorn's httptools connection, kept within HttpLimits and strict about what a request looks like.

llhttp is strict about line ends and chunk sizes by itself, but bounds nothing; that is added here.
"""

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from kilotron.text_generation_server.http_connection import BoundedConnection, Phase
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.request_head import check_head, malformed


class HttpProtocol(BoundedConnection, HttpToolsProtocol):
    """One connection, parsed by httptools."""

    _running: RequestResponseCycle | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the newest request only, which with pipelining is not the one that runs.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; whatever it or a limit objects to ends the connection with an error object."""
        if self.is_discarding:
            return
        self._unset_keepalive_if_required()
        phase_before = self.phase
        if phase_before is Phase.IDLE:
            self.start_head_timer()
        try:
            self.parser.feed_data(data)
            self._meter_unparsed(len(data), phase_before)
        except httptools.HttpParserUpgrade:
            # Nothing is spoken here but HTTP: the request is answered as if it had not asked.
            self.is_discarding = True
            self.cycle.keep_alive = False
        except HttpError as error:
            self.refuse(error)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.refuse(cause if isinstance(cause, HttpError) else malformed("the request is not proper HTTP"))

    def _meter_unparsed(self, num_bytes: int, phase_before: Phase) -> None:
        """Count what the parser keeps or skips without telling: a head's unfinished line, a body's framing."""
        if self.phase is Phase.HEAD and phase_before is not Phase.BODY:
            self.meter.add_unfinished(num_bytes)
        elif self.phase is Phase.BODY and phase_before is Phase.BODY:
            self.meter.add_framing(num_bytes)
            self.meter.check_framing()

    def on_message_begin(self) -> None:
        self.phase = Phase.HEAD
        self.meter.start()
        self.start_head_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.meter.add_url(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.meter.add_header(name, value)
        if self.phase is Phase.HEAD:  # trailers are counted and dropped: the application has its headers already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.stop_head_timer()
        check_head(self.parser.get_http_version(), self.headers)
        if len(self.pipeline) >= self.limits.max_pipelined_requests:
            raise malformed("too many pipelined requests")
        super().on_headers_complete()
        self.phase = Phase.BODY
        if self.pipeline:
            self.flow.resume_reading()  # uvicorn stops here, and would not see the peer leave

    def on_chunk_header(self) -> None:
        """A chunk of the body begins."""
        self.meter.add_chunk()

    def on_body(self, body: bytes) -> None:
        self.meter.add_framing(-len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.phase = Phase.IDLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.phase is Phase.BODY and not self._has_waiting_requests():
            self.close()  # the rest of an unread body would pass for the next request
        super().on_response_complete()
