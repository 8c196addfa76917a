"""Whole JSON responses for the endpoints that are not in a hurry, and their request bodies."""

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.json_body import convert, decode_object, unknown_fields

T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Structs, lists, dicts and plain values as JSON."""
    return Response(_encoder.encode(content), status, headers, media_type="application/json")


async def read_struct(request: Request, kind: type[T], *, is_optional: bool = False) -> T:
    """A request's body as a struct.

    Args:
        request: Starlette's.
        kind: the struct.
        is_optional: no body is an empty object.

    Raises:
        HttpError: 400, naming what is wrong.
    """
    body = await request.body()
    given = {} if is_optional and not body.strip() else decode_object(body)
    given = {name: value for name, value in given.items() if value is not None}
    for warning in unknown_fields(given, kind.__struct_fields__):
        raise HttpError(400, warning, code="unknown_parameter")
    return convert(given, kind)
