"""Heads that two parsers could read in two ways are refused; what is counted is bounded."""

import pytest

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.text_generation_server.request_head import RequestMeter, check_head

HOST = (b"host", b"localhost:8000")


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"[::1]", b"xn--bcher-kva.example", b"my_service:80", b"a:"],
)
def test_a_usual_host_is_taken(host: bytes) -> None:
    check_head("1.1", [(b"host", host)])


@pytest.mark.parametrize("host", [b"a/b", b"a?b", b"a b", b"a@b", b"a:b", b"[a", b"\xe9", b"a:1:2", b"a#"])
def test_a_host_that_could_hide_a_path_is_refused(host: bytes) -> None:
    with pytest.raises(HttpError, match="Host"):
        check_head("1.1", [(b"host", host)])


def test_only_the_older_protocol_does_without_a_host() -> None:
    check_head("1.0", [])
    with pytest.raises(HttpError, match="Host"):
        check_head("1.1", [])


@pytest.mark.parametrize(
    "headers",
    [
        [(b"transfer-encoding", b"chunked"), (b"content-length", b"1")],
        [(b"transfer-encoding", b"chunked, chunked")],
        [(b"transfer-encoding", b"identity")],
        [(b"content-length", b"1"), (b"content-length", b"1")],
        [(b"content-length", b"0x1")],
        [(b"content-length", b"")],
    ],
)
def test_ambiguous_framing_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(HttpError) as caught:
        check_head("1.1", [HOST, *headers])

    assert caught.value.status == 400


def test_framing_bytes_are_bounded_and_body_bytes_are_not_counted() -> None:
    meter = RequestMeter(HttpLimits(max_header_bytes=100))
    for _ in range(1000):
        meter.add_chunk()
        meter.add_framing(1000)
        meter.add_framing(-990)
        meter.check_framing()
    meter.add_framing(40_000)

    with pytest.raises(HttpError):
        meter.check_framing()


def test_a_new_request_starts_from_nothing() -> None:
    meter = RequestMeter(HttpLimits(max_headers=1))
    meter.add_header(b"a", b"b")
    meter.start()

    meter.add_header(b"a", b"b")
    with pytest.raises(HttpError) as caught:
        meter.add_header(b"a", b"b")
    assert caught.value.status == 431
