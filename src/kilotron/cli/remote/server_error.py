"""ServerError: what a server, or the way to it, did instead of answering; and how its error bodies are read."""

import json
from collections.abc import Mapping
from typing import Any

from kilotron.errors import KilotronError

_MAX_SHOWN = 500


class ServerError(KilotronError):
    """A server did not do what it was asked.

    Args:
        message: for the user.
        status: of the HTTP response; 0 when there was none, or the failure came later.
        code: the error's code in OpenAI's sense, such as "context_length_exceeded".
        retry_after_s: when the server wants to be asked again; None when it did not say.
    """

    def __init__(
        self, message: str, *, status: int = 0, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def error_of_response(status: int, headers: Mapping[str, str], body: bytes) -> ServerError:
    """The error that a response which is not 200 tells of."""
    try:
        found = json.loads(body)
    except ValueError:
        found = body.decode("utf-8", "replace")
    message, code = read_error(found)
    try:
        retry_after_s = float(headers["retry-after"])
    except (KeyError, ValueError):
        retry_after_s = None
    return ServerError(message or f"HTTP status {status}", status=status, code=code, retry_after_s=retry_after_s)


def read_error(found: Any) -> tuple[str, str | None]:
    """Message and code of an error body, in the shapes that servers send: nested, flat, or a mere text."""
    error = found.get("error", found) if isinstance(found, Mapping) else found
    if not isinstance(error, Mapping):
        return printable(str(error)), None
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    message = error.get("message") or error.get("detail") or ""
    return printable(str(message)), code if isinstance(code, str) else None


def printable(text: str) -> str:
    """One bounded line without control characters: a stranger's words on a terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: _MAX_SHOWN + 1]).strip()
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."
