"""BoundedConnection: the timers, refusals and closing that uvicorn's connections lack, whichever parser they use.

Mixed in before one of uvicorn's protocol classes. Knows nothing of parsing: the subclass says where a request is.
"""

import asyncio
import enum
import fcntl
import logging
import sys
import termios
import uuid
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.text_generation_server.request_head import RequestMeter

logger = logging.getLogger(__name__)

# Connections above the limit that may be told so at the same time; more are dropped without a word.
_MAX_REFUSED_CONNECTIONS = 64


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration, with the limits that its connections keep."""

    def __init__(self, app: Any, limits: HttpLimits, **options: Any) -> None:
        super().__init__(app, timeout_keep_alive=cast("int", limits.keep_alive_timeout_s), **options)
        self.limits = limits


class Phase(enum.Enum):
    """Where a connection is in the request that it reads."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class _Transport:
    """The transport as uvicorn sees it: `close` is the connection's decision, everything else passes through."""

    def __init__(self, transport: asyncio.Transport, connection: "BoundedConnection") -> None:
        self._transport = transport
        self._connection = connection
        self.write = transport.write  # called once per streamed token, so without a method of ours in between

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.is_closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Connection
else:
    _Connection = object


class BoundedConnection(_Connection):
    """Bounds on how long a peer may take to send a head, to read a response and to go away."""

    def __init__(
        self,
        config: BoundedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self.limits = config.limits
        self.phase = Phase.IDLE
        self.meter = RequestMeter(config.limits)
        self.is_closing = False
        self.is_discarding = False  # nothing the peer sends from here on is read
        self._raw_transport: asyncio.Transport
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self._raw_transport = transport
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self)))
        transport.set_write_buffer_limits(high=self.limits.max_write_buffer_bytes)
        num_excess = len(self.connections) - self.limits.max_connections
        if num_excess > _MAX_REFUSED_CONNECTIONS:
            transport.abort()
        elif num_excess > 0:
            self.refuse(HttpError(503, "too many connections", code="too_many_connections", retry_after_s=1))
        else:
            self.start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closing = self.is_discarding = True
        self._stop_timers()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """The peer is gone, or has read why it was refused; asyncio closes the transport."""
        self.is_discarding = True

    def start_head_timer(self) -> None:
        """A request may begin now; it has the header timeout to bring its head."""
        if self._head_timer is None and not self.is_closing:
            self._head_timer = self.loop.call_later(self.limits.header_timeout_s, self._on_head_timeout)

    def stop_head_timer(self) -> None:
        """The head is complete."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self.phase is Phase.IDLE:
            if self.cycle is None or self.cycle.response_complete:
                self.close()  # an unused connection: nobody waits for an answer
        else:
            self.refuse(HttpError(408, "the request's headers took too long", code="request_timeout"))

    def refuse(self, error: HttpError) -> None:
        """Answer the request that is being read with an error, if it is its turn, and be done with the connection."""
        logger.debug("refused a request: %d %s", error.status, error.message)
        self.is_discarding = True
        self.stop_head_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self.phase is not Phase.BODY:  # `cycle` is an earlier request; the connection ends after its response
                cycle.keep_alive = False
                return
            # `cycle` is the request at fault. Its application sees a disconnect.
            if cycle.response_started or self._has_waiting_requests():
                self._raw_transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self._raw_transport.write(_to_bytes(error))
        self.close()

    def _has_waiting_requests(self) -> bool:
        return bool(getattr(self, "pipeline", ()))

    def close(self) -> None:
        """Close after what was written is read. A peer that is still sending gets a moment to read it first."""
        if self.is_closing:
            return
        was_refused = self.is_discarding or self.phase is not Phase.IDLE
        self.is_closing = self.is_discarding = True
        self._stop_timers()
        if was_refused:
            # Closing with unread input would make the kernel send a reset, which overtakes and destroys the response.
            self._raw_transport.resume_reading()
            if self._raw_transport.can_write_eof():
                self._raw_transport.write_eof()
            self._stall_timer = self.loop.call_later(self.limits.linger_timeout_s, self._on_linger_timeout)
            return
        self._raw_transport.close()
        if self._raw_transport.get_write_buffer_size():
            self._start_stall_timer()

    def _on_linger_timeout(self) -> None:
        if self._raw_transport.get_write_buffer_size():
            self._start_stall_timer()  # a slow reader is still at a long response
        else:
            self._raw_transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._start_stall_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None and not self.is_closing:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _start_stall_timer(self) -> None:
        unread = _num_unread_bytes(self._raw_transport)
        self._stall_timer = self.loop.call_later(self.limits.send_stall_timeout_s, self._on_stall_timeout, unread)

    def _on_stall_timeout(self, earlier_unread: int) -> None:
        if _num_unread_bytes(self._raw_transport) < earlier_unread:
            self._start_stall_timer()
        else:
            logger.debug("a peer read nothing for %s s", self.limits.send_stall_timeout_s)
            self._raw_transport.abort()

    def _stop_timers(self) -> None:
        self.stop_head_timer()
        self._unset_keepalive_if_required()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def _num_unread_bytes(transport: asyncio.Transport) -> int:
    """What the peer has not taken yet, in our buffer and the kernel's, which moves in large steps only."""
    in_kernel = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)


def _to_bytes(error: HttpError) -> bytes:
    response = error.to_response()
    headers = [*response.raw_headers, (b"x-request-id", uuid.uuid4().hex.encode()), (b"connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[error.status] + lines + b"\r\n" + bytes(response.body)
