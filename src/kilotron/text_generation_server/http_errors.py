"""HttpError and the table from kilotron's exceptions to it: the one place where error responses are made.

Every error is `{"error": {"message", "type", "param", "code"}}`. What a caller may not know (paths, addresses, causes)
has a fixed message here; the details belong in the log. Knows nothing of routes or sockets.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.responses import Response

from kilotron.errors import (
    ChatTemplateError,
    DeadlineExceededError,
    DuplicateRequestError,
    EmptyPromptError,
    EngineClosedError,
    EngineDiedError,
    InvalidRequestError,
    LifecycleError,
    NumericalError,
    PromptTooLongError,
    QueueFullError,
    QuotaExceededError,
    RequestAbortedError,
    RequestNeverFitsError,
    RequestNotFoundError,
    ServiceUnavailableError,
    StepFailedError,
    TokenOutOfRangeError,
)

MAX_MESSAGE_CHARS = 1024
MAX_RETRY_AFTER_S = 30  # clients ignore values that are too large (openai: 120 s)


class HttpError(Exception):
    """An error that a client sees. Raise it anywhere below the guard.

    Args:
        status: HTTP status, 400 or above.
        message: What is wrong and what to do about it; cut at 1024 characters.
        param: JSON path of the field at fault, such as `messages[3].content`.
        code: Short name for programs, such as `context_length_exceeded`.
        retry_after_s: Seconds after which a retry makes sense; becomes `Retry-After`, 1 to 30.
        should_retry: False stops clients that retry every 5xx by themselves; None says nothing.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 3] + "..."
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(retry_after_s))))
        if should_retry is not None:
            self.headers["x-should-retry"] = "true" if should_retry else "false"

    @property
    def error_type(self) -> str:
        """OpenAI's `type`, which follows from the status."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        return "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"

    def to_json(self) -> bytes:
        """The error object, in ASCII whatever the message holds."""
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode("ascii")

    def to_response(self) -> Response:
        """The error as a whole response."""
        return Response(self.to_json(), self.status, self.headers, media_type="application/json")

    def to_event(self) -> bytes:
        """The error as the last event of a stream that has begun; no `[DONE]` may follow."""
        return b"data: " + self.to_json() + b"\n\n"


@dataclass(frozen=True, kw_only=True)
class ErrorRule:
    """What a client gets for one class of exceptions.

    `message=None` passes the exception's own message on; only for classes whose messages are written for callers.
    `may_retry`: True adds Retry-After, False tells clients not to, None leaves it to them.
    """

    status: int
    code: str
    param: str | None = None
    message: str | None = None
    may_retry: bool | None = None


_INTERNAL = ErrorRule(status=500, code="internal_error", message="An internal error occurred; the server's log has it.")

# The first class that fits counts, so the special ones stand above the general ones. An attribute `retry_after_s` or
# `param` of the exception itself goes before the rule's.
ERROR_RULES: tuple[tuple[type[Exception], ErrorRule], ...] = (
    (PromptTooLongError, ErrorRule(status=400, code="context_length_exceeded")),
    (RequestNeverFitsError, ErrorRule(status=400, code="context_length_exceeded")),
    (EmptyPromptError, ErrorRule(status=400, code="invalid_value", param="prompt")),
    (TokenOutOfRangeError, ErrorRule(status=400, code="invalid_value", param="prompt")),
    (InvalidRequestError, ErrorRule(status=400, code="invalid_value")),  # SamplingParamsError is one
    (ChatTemplateError, ErrorRule(status=400, code="invalid_value", param="messages")),
    (RequestNotFoundError, ErrorRule(status=404, code="request_not_found", message="No such request is known.")),
    (
        DeadlineExceededError,
        ErrorRule(
            status=504,
            code="deadline_exceeded",
            message="The request's time was over before it finished; ask for less, or give it more.",
            may_retry=False,
        ),
    ),
    (DuplicateRequestError, ErrorRule(status=409, code="duplicate_request", may_retry=False)),
    (LifecycleError, ErrorRule(status=409, code="lifecycle_error", may_retry=False)),
    (
        RequestAbortedError,
        ErrorRule(status=409, code="request_aborted", message="The request was aborted.", may_retry=False),
    ),
    (QueueFullError, ErrorRule(status=503, code="queue_full", may_retry=True)),
    (QuotaExceededError, ErrorRule(status=429, code="rate_limit_exceeded", may_retry=True)),
    (ServiceUnavailableError, ErrorRule(status=503, code="service_unavailable", may_retry=True)),
    (
        EngineDiedError,
        ErrorRule(
            status=503,
            code="engine_died",
            message="The engine that ran the request died before it was done; it may be sent again.",
            may_retry=True,
        ),
    ),
    (
        EngineClosedError,
        ErrorRule(status=503, code="engine_closed", message="The engine is not running.", may_retry=True),
    ),
    (MemoryError, ErrorRule(status=503, code="out_of_memory", message="The server ran out of memory.", may_retry=True)),
    (
        NumericalError,
        ErrorRule(
            status=500,
            code="numerical_error",
            message="The model's output for this request was not a number.",
            may_retry=False,
        ),
    ),
    (
        StepFailedError,
        ErrorRule(status=500, code="step_failed", message="A computation that the request took part in failed."),
    ),
)


def http_error_of(error: BaseException) -> HttpError:
    """What a client may know of an exception; a fixed text if its class is in no rule."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, EngineDiedError) and not error.is_retryable:
        message = "Engines died while they ran this request; it may be the cause."
        return HttpError(500, message, code="engine_died", should_retry=False)
    rule = next((rule for kind, rule in ERROR_RULES if isinstance(error, kind)), _INTERNAL)
    return HttpError(
        rule.status,
        str(error) if rule.message is None else rule.message,
        param=getattr(error, "param", None) or rule.param,
        code=rule.code,
        retry_after_s=getattr(error, "retry_after_s", None) or (1.0 if rule.may_retry else None),
        should_retry=False if rule.may_retry is False else None,
    )


def is_for_the_log(failure: BaseException) -> bool:
    """Whether an operator should see where an exception came from: not for mistakes of clients, and not for requests
    that are refused or ended because of load, a deadline or a restart, of which there may be thousands a second."""
    if isinstance(failure, HttpError):
        return False
    return isinstance(failure, MemoryError) or http_error_of(failure).status == HTTPStatus.INTERNAL_SERVER_ERROR


_STATUS_ERRORS: dict[int, tuple[str, str]] = {
    400: ("bad_request", "The request is malformed."),
    401: ("invalid_api_key", "A valid API key is needed."),
    403: ("forbidden", "The request is not allowed."),
    404: ("not_found", "There is no such route; GET /v1/models lists the models."),
    405: ("method_not_allowed", "This route does not take this method; the Allow header lists those it takes."),
    413: ("request_too_large", "The request body is too large."),
    415: ("unsupported_media_type", "The request body must be application/json."),
    503: ("service_unavailable", "The server cannot take requests now; try again later."),
}


def http_error_of_status(status: int, headers: Mapping[str, str]) -> HttpError:
    """The error object for a response whose own body says it some other way, with the headers that still count."""
    code, message = _STATUS_ERRORS.get(status, (None, None))
    if message is None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        code, message = _INTERNAL.code, _INTERNAL.message
    return HttpError(status, message or "The request was refused.", code=code, headers=headers)
