"""Tests of reading an HTTP response, whatever portions it comes in."""

import pytest

from kilotron.cli.remote.response_parser import ResponseParser
from kilotron.cli.remote.server_error import ServerError

CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Some: thing\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n \r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)
COUNTED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nRetry-After: 3\r\n\r\nbusy!"


def read(*portions: bytes) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser()
    return parser, b"".join(piece for portion in portions for piece in parser.feed(portion))


@pytest.mark.parametrize(("response", "body"), [(CHUNKED, b"hello 0123456789"), (COUNTED, b"busy!")])
def test_a_response_split_at_any_byte_reads_the_same(response: bytes, body: bytes) -> None:
    for at in range(len(response)):
        parser, found = read(response[:at], response[at:])
        assert found == body
        assert parser.is_complete


def test_status_and_headers_are_there_by_lower_case_name() -> None:
    parser, _ = read(COUNTED)
    assert parser.status == 503
    assert parser.headers["retry-after"] == "3"


def test_without_a_length_the_body_ends_with_the_connection() -> None:
    parser, body = read(b"HTTP/1.0 200 OK\r\n\r\nab", b"c")
    assert body == b"abc"
    assert not parser.is_complete
    parser.end()
    assert parser.is_complete


@pytest.mark.parametrize("at", [10, len(COUNTED) - 2])
def test_an_end_in_the_middle_is_an_error(at: int) -> None:
    parser, _ = read(COUNTED[:at])
    with pytest.raises(ServerError, match="in the middle"):
        parser.end()


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnine\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * (65 << 10),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"T" * 9000,
    ],
)
def test_what_is_no_response_is_refused(response: bytes) -> None:
    with pytest.raises(ServerError):
        read(response)
