"""Reading a call's body and writing a whole JSON response, over raw ASGI."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

MAX_WARNING_CHARS = 512

_encoder = msgspec.json.Encoder()


async def read_body(receive: Receive) -> bytes:
    """The whole body; its size is bounded by the guard. An incomplete one is as good as an empty one: nobody is left to
    read an answer."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def send_json(send: Send, content: Any, headers: Headers = ()) -> None:
    """A whole response with status 200."""
    body = _encoder.encode(content)
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def warning_headers(warnings: Iterable[str]) -> Headers:
    """What was ignored in a request, for its sender's eyes."""
    text = "; ".join(warnings)[:MAX_WARNING_CHARS]
    clean = text.encode("ascii", "replace").replace(b"\n", b" ").replace(b"\r", b" ")
    return [(b"x-kilotron-warning", clean)] if text else []
