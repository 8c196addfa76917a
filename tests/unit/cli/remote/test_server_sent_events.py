"""Tests of reading server-sent events, whatever portions they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilotron.cli.remote.server_error import ServerError
from kilotron.cli.remote.server_sent_events import EventParser

STREAM = (
    b'\xef\xbb\xbfdata: {"a":1}\n\n: keep-alive\n\nevent: x\nid: 7\ndata:first\ndata: second\n\n'
    b"data: carriage\r\rdata: both\r\n\r\nretry: 9\n\ndata\n\ndata:  two blanks\n\ndata: na\xc3\xafve \xe2\x80\xa8x\n\n"
    b"data: [DONE]\n\ndata: without an end"
)
EVENTS = [
    b'{"a":1}',
    b"first\nsecond",
    b"carriage",
    b"both",
    b"",
    b" two blanks",
    b"na\xc3\xafve \xe2\x80\xa8x",
    b"[DONE]",
]


def parse(*portions: bytes) -> list[bytes]:
    parser = EventParser()
    return [event for portion in portions for event in parser.feed(portion)]


def test_events_are_read_as_the_standard_says() -> None:
    assert parse(STREAM) == EVENTS


@pytest.mark.parametrize("at", range(len(STREAM)))
def test_a_stream_split_at_any_byte_gives_the_same_events(at: int) -> None:
    assert parse(STREAM[:at], STREAM[at:]) == EVENTS


def test_a_stream_that_comes_byte_by_byte_gives_the_same_events() -> None:
    assert parse(*(STREAM[at : at + 1] for at in range(len(STREAM)))) == EVENTS


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b":c", b"data:", b"y"]), max_size=30), st.data())
def test_no_split_of_any_stream_changes_its_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    at = data.draw(st.integers(0, len(stream)))
    assert parse(stream[:at], b"", stream[at:]) == parse(stream)


@pytest.mark.parametrize("portion", [b"data: 1234567", b"data: 1234567\n"])
def test_a_line_or_an_event_without_end_is_refused(portion: bytes) -> None:
    parser = EventParser(max_event_bytes=64)
    with pytest.raises(ServerError, match="64 bytes"):
        [parser.feed(portion) for _ in range(10)]


def test_many_events_are_no_long_event() -> None:
    parser = EventParser(max_event_bytes=64)
    assert len(parser.feed(b"data: 1234567\n\n" * 50)) == 50
