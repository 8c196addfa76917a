"""What a request's head and framing may look like, for whichever parser reads it. Pure: knows no sockets."""

import re

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.http_limits import HttpLimits

Headers = list[tuple[bytes, bytes]]

# What an authority can consist of; a slash or a question mark here would be the start of another request's path.
_HOST = re.compile(rb"[A-Za-z0-9._~%\-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_HEADER_LINE_OVERHEAD = len(b": \r\n")
_FRAMING_BYTES_PER_CHUNK = 32


def malformed(message: str) -> HttpError:
    """The error for a request that is not proper HTTP."""
    return HttpError(400, message, code="malformed_request")


def check_head(http_version: str, headers: Headers) -> None:
    """Raise HttpError for a head that a proxy in front of us might read in another way; names are lower case."""
    if http_version not in ("1.0", "1.1"):
        raise malformed("only HTTP/1.0 and HTTP/1.1 are spoken here")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and http_version == "1.1"):
        raise malformed("a request needs exactly one Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise malformed("the Host header is not a host name with an optional port")
    _check_framing(http_version, headers)


def _check_framing(http_version: str, headers: Headers) -> None:
    encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if encodings and (lengths or http_version == "1.0"):
        raise malformed("Transfer-Encoding excludes Content-Length and HTTP/1.0")
    if encodings and encodings != [b"chunked"]:
        raise malformed("the only transfer encoding understood is 'chunked'")
    if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
        raise malformed("Content-Length must be given once, as a whole number")
    expectations = [value.lower() for name, value in headers if name == b"expect"]
    if expectations and expectations != [b"100-continue"]:
        raise HttpError(417, "the only expectation understood is '100-continue'", code="expectation_failed")


class RequestMeter:
    """Counts what one request has sent so far beside its body; raises HttpError where a limit is passed."""

    __slots__ = (
        "_limits", "_num_chunks", "_num_framing_bytes", "_num_header_bytes", "_num_headers", "_num_unfinished_bytes",
        "_num_url_bytes",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.start()

    def start(self) -> None:
        """A new request begins."""
        self._num_url_bytes = self._num_header_bytes = self._num_headers = self._num_unfinished_bytes = 0
        self._num_chunks = self._num_framing_bytes = 0

    def add_url(self, num_bytes: int) -> None:
        """A piece of the request target came in."""
        self._num_url_bytes += num_bytes
        if self._num_url_bytes > self._limits.max_url_bytes:
            message = f"the URL is longer than {self._limits.max_url_bytes} bytes"
            raise HttpError(414, message, code="uri_too_long")

    def add_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer line came in."""
        self._num_headers += 1
        if self._num_headers > self._limits.max_headers:
            message = f"the request has more than {self._limits.max_headers} headers"
            raise HttpError(431, message, code="headers_too_large")
        self._num_header_bytes += len(name) + len(value) + _HEADER_LINE_OVERHEAD
        self._check_header_bytes(self._num_header_bytes)

    def add_unfinished(self, num_bytes: int) -> None:
        """Bytes came in that did not end the head, whether or not they made up whole lines."""
        self._num_unfinished_bytes += num_bytes
        self._check_header_bytes(self._num_unfinished_bytes)

    def _check_header_bytes(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_header_bytes:
            message = f"the request's headers are larger than {self._limits.max_header_bytes} bytes"
            raise HttpError(431, message, code="headers_too_large")

    def add_chunk(self) -> None:
        """A chunk of a chunked body begins."""
        self._num_chunks += 1
        if self._num_chunks > self._limits.max_body_chunks:
            message = f"the request body has more than {self._limits.max_body_chunks} chunks"
            raise HttpError(413, message, code="request_too_large")

    def add_framing(self, num_bytes: int) -> None:
        """Bytes that are no body (chunk sizes, extensions, trailers) came in; negative takes body bytes out again."""
        self._num_framing_bytes += num_bytes

    def check_framing(self) -> None:
        """Raise if chunk extensions or trailers, which no parser bounds, grow too large."""
        allowed = self._limits.max_header_bytes + self._num_chunks * _FRAMING_BYTES_PER_CHUNK
        if self._num_framing_bytes > allowed:
            raise malformed("the chunked body's extensions or trailers are too large")
