"""HttpLimits: how much one HTTP peer may send, hold and delay. Owns the numbers, enforces none of them."""

from dataclasses import dataclass, fields

from kilotron.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Bounds for one connection and for all of them. Bytes, counts, and seconds (`_s`); every value is above 0.

    Raises:
        ConfigError: a value is not above 0; the message names it.
    """

    max_header_bytes: int = 64 * KIB
    """Request line and header lines together; more is 431."""
    max_headers: int = 100
    """Header lines; more is 431."""
    max_url_bytes: int = 8 * KIB
    """Request target; longer is 414."""
    max_body_bytes: int = 4 * MIB
    """Request body, counted as it arrives; more is 413."""
    max_body_chunks: int = 16 * KIB
    """Chunks of a chunked request body; more is 413, because each one costs a call."""
    max_write_buffer_bytes: int = 64 * KIB
    """Response bytes that a connection holds in user space before `send` waits for the reader."""
    max_connections: int = 1024
    """Open connections of one front end; one more is answered 503 and closed."""
    max_pipelined_requests: int = 8
    """Requests that may wait behind the one being answered on a connection."""
    header_timeout_s: float = 10.0
    """From the first byte of a request (or from accepting) to the end of its headers; later is 408."""
    body_timeout_s: float = 30.0
    """From the end of the headers to the end of the body; later is 408."""
    send_stall_timeout_s: float = 30.0
    """A peer that takes no byte of the response for so long is disconnected."""
    keep_alive_timeout_s: float = 15.0
    """An idle connection is closed after so long."""
    linger_timeout_s: float = 2.0
    """A refused peer that goes on sending gets so long to read why."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError(f"{field.name} must be above 0, not {value!r}")
