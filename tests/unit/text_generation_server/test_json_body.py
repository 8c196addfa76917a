"""Bytes to values: everything that is no JSON, or too much of it, is told apart and refused quickly."""

import time
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.json_body import convert, decode_json, decode_object, unknown_fields

MALFORMED = {
    "empty": (b"", "invalid_json"),
    "blank": (b"   ", "invalid_json"),
    "cut off": (b'{"a": [1, 2', "invalid_json"),
    "trailing garbage": (b'{"a": 1} x', "invalid_json"),
    "two values": (b"{} {}", "invalid_json"),
    "trailing comma": (b'{"a": 1,}', "invalid_json"),
    "single quotes": (b"{'a': 1}", "invalid_json"),
    "comment": (b'{"a": 1} // no', "invalid_json"),
    "NaN": (b'{"a": NaN}', "invalid_json"),
    "Infinity": (b'{"a": -Infinity}', "invalid_json"),
    "a number beyond floats": (b'{"a": 1e400}', "invalid_json"),
    "a number of thousands of digits": (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
    "a lone surrogate": (b'{"a": "\\ud800"}', "invalid_json"),
    "a lone surrogate before text": (b'{"a": "\\ud800abc"}', "invalid_json"),
    "a low surrogate": (b'{"a": "\\udc00"}', "invalid_json"),
    "a control character": (b'{"a": "\x01"}', "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "invalid_json"),
    "nested a hundred thousand times": (b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
    "nested 65 times": (b"[" * 65 + b"]" * 65, "invalid_json"),
    "too many fields": (msgspec.json.encode({str(i): 1 for i in range(10_001)}), "invalid_json"),
    "too many lists": (msgspec.json.encode([[]] * 10_001), "invalid_json"),
    "not UTF-8": (b'{"a": "\xff"}', "invalid_utf8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "invalid_utf8"),
    "an overlong encoding": (b'{"a": "\xc0\xaf"}', "invalid_utf8"),
    "a surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "invalid_utf8"),
    "a key twice": (b'{"a": 1, "b": 2, "a": 3}', "duplicate_key"),
    "a key twice further in": (b'{"a": [{"b": 1, "b": 1}]}', "duplicate_key"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_json_is_refused_with_its_own_code(name: str) -> None:
    body, code = MALFORMED[name]
    with pytest.raises(HttpError) as caught:
        decode_json(body)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize("name", MALFORMED)
def test_refusing_takes_at_most_ten_milliseconds(name: str) -> None:
    body, _ = MALFORMED[name]
    seconds = []
    for _ in range(3):
        before = time.perf_counter()
        with pytest.raises(HttpError):
            decode_json(body)
        seconds.append(time.perf_counter() - before)
    assert min(seconds) < 0.010


def test_a_long_list_of_token_ids_is_fine() -> None:
    assert decode_object(msgspec.json.encode({"prompt": list(range(50_000))}))["prompt"][-1] == 49_999


def test_depth_64_is_fine() -> None:
    assert decode_json(b"[" * 64 + b"]" * 64)


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"5", b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        decode_object(body)
    assert caught.value.code == "invalid_type"


class Inner(msgspec.Struct):
    value: Annotated[int, Meta(ge=0)]


class Outer(msgspec.Struct):
    items: list[Inner]
    share: Annotated[float, Meta(le=1)] = 0.0


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        ({}, "items", "missing_parameter"),
        ({"items": [{"value": 1}, {}]}, "items[1].value", "missing_parameter"),
        ({"items": [{"value": "1"}]}, "items[0].value", "invalid_type"),
        ({"items": [{"value": True}]}, "items[0].value", "invalid_type"),
        ({"items": [{"value": 1.0}]}, "items[0].value", "invalid_type"),
        ({"items": [{"value": -1}]}, "items[0].value", "invalid_value"),
        ({"items": [], "share": 2}, "share", "invalid_value"),
        ({"items": 5}, "items", "invalid_type"),
    ],
)
def test_an_error_has_the_path_of_the_field_and_its_kind(value: dict[str, object], param: str, code: str) -> None:
    with pytest.raises(HttpError) as caught:
        convert(value, Outer)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_an_error_names_the_value_and_the_range() -> None:
    with pytest.raises(HttpError, match=r"share: must be a number <= 1\.0, not 2"):
        convert({"items": [], "share": 2}, Outer)


def test_an_unknown_field_gets_the_nearest_known_one() -> None:
    assert unknown_fields({"max_token": 1}, ["max_tokens", "n"]) == [
        "unknown field 'max_token'; did you mean 'max_tokens'?"
    ]


@pytest.mark.parametrize("body", [b'{"a": "b\\": c"}', b'{"a" : {"a":1}, "b"\t\n:2}', b'{"\\"a\\":": 1}'])
def test_what_only_looks_like_a_second_key_is_none(body: bytes) -> None:
    assert decode_json(body) == msgspec.json.decode(body)
