"""Bytes of a request's body -> Python values -> a request struct; every way in which that can fail has its own code.

Knows JSON and msgspec; the fields' meaning is in the structs. Bodies are bounded before they come here (see Guard).
"""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from kilotron.text_generation_server.http_errors import HttpError

MAX_DEPTH = 64
MAX_NODES_PER_LEVEL = 10_000

T = TypeVar("T", bound=msgspec.Struct)

_CONTAINERS = frozenset({dict, list})
_KEY = re.compile(rb'"\s*:')
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_QUOTED = re.compile(r"`([^`]*)`")
_WORDS = {
    "int": "a whole number", "float": "a number", "str": "a text", "array": "a list", "object": "an object",
    "bool": "true or false",
}  # fmt: skip
_AT_PATH = re.compile(r" - at `(?:key` in `)?\$(.*)`$")


def decode_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        HttpError: 400 with code invalid_utf8, invalid_json (also NaN, infinities, lone surrogates, nesting or breadth
            beyond all need) or duplicate_key.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HttpError(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        message = "too deeply nested" if isinstance(error, RecursionError) else str(error).replace("JSON is", "it is")
        raise HttpError(400, f"the body is not JSON: {message}", code="invalid_json") from None
    # msgspec takes the last of equal keys without a word. Where the text may have more keys than arrived (or a text
    # that looks like one), Python's slower parser can be asked about them.
    if _check_shape(value) != len(_KEY.findall(body)):
        json.loads(text, object_pairs_hook=_without_duplicates)
    return value


def decode_object(body: bytes) -> dict[str, Any]:
    """The object that a body is.

    Raises:
        HttpError: 400; see `decode_json`, or it is something other than an object.
    """
    value = decode_json(body)
    if not isinstance(value, dict):
        raise HttpError(400, f"the body must be a JSON object, not {_name_of(value)}", code="invalid_type")
    return value


def convert(value: dict[str, Any], kind: type[T]) -> T:
    """An object as a struct.

    Raises:
        HttpError: 400 with code missing_parameter, invalid_type or invalid_value and the field's JSON path.
    """
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _explain(str(error), value) from None
    except (RecursionError, OverflowError):
        raise HttpError(400, "a value of the body is too large", code="invalid_value") from None


def unknown_fields(value: dict[str, Any], known: Iterable[str]) -> list[str]:
    """A sentence for each field that is not known, with the nearest one that is."""
    names = sorted(known)
    sentences = []
    for name in value:
        if name not in names:
            near = difflib.get_close_matches(name[:64], names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            sentences.append(f"unknown field {name[:64]!r}{hint}")
    return sentences


def _check_shape(value: Any) -> int:
    """The number of keys. Goes level by level, so that depth costs no stack. Numbers and texts in lists do not count:
    token ids are many."""
    num_keys = 0
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            break
        num_nodes = sum(len(node) for node in level if isinstance(node, dict))
        num_keys += num_nodes
        level = [child for node in level for child in _containers_in(node)]
        if num_nodes + len(level) > MAX_NODES_PER_LEVEL:
            raise HttpError(
                400, f"the body has more than {MAX_NODES_PER_LEVEL} fields on one level", code="invalid_json"
            )
    if level:
        raise HttpError(400, f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
    return num_keys


def _containers_in(node: dict[str, Any] | list[Any]) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node
    if _CONTAINERS.isdisjoint(map(type, children)):  # hundreds of thousands of token ids are looked at quickly
        return []
    return [child for child in children if type(child) in _CONTAINERS]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise HttpError(400, f"the key {name[:64]!r} stands twice in one object", code="duplicate_key")
        seen.add(name)


def _explain(message: str, value: Any) -> HttpError:
    """What msgspec says, in OpenAI's words: path without `$`, the value at fault, and which kind of fault it is."""
    found = _AT_PATH.search(message)
    path = found[1].lstrip(".") if found else ""
    text = message[: found.start()] if found else message
    missing = _MISSING.fullmatch(text)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return HttpError(400, f"{path} is missing", param=path, code="missing_parameter")
    is_type_error = ", got `" in text
    text = _QUOTED.sub(_in_words, text).replace("Expected", "must be")
    given = "" if is_type_error else f", not {_shorten(_find(value, path))}"
    return HttpError(
        400, f"{path}: {text}{given}", param=path or None, code="invalid_type" if is_type_error else "invalid_value"
    )


def _in_words(types: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(name, name) for name in types[1].split(" | "))


def _find(value: Any, path: str) -> Any:
    """What stands at a path such as `messages[3].content`."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return value
    return value


def _shorten(value: Any) -> str:
    text = msgspec.json.encode(value).decode() if isinstance(value, (bool, int, float, str)) else _name_of(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _name_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
