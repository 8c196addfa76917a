"""Errors of requests on the wire: from an exception to a RequestError and back, by the name of its class."""

from kilotron import errors
from kilotron.coordinator.wire import RequestError
from kilotron.errors import EngineDiedError, KilotronError, TryAgainLaterError

_MAX_MESSAGE_CHARS = 1024

_BY_NAME: dict[str, type[KilotronError]] = {
    name: member
    for name, member in vars(errors).items()
    if isinstance(member, type) and issubclass(member, KilotronError)
}


def to_wire(error: KilotronError) -> RequestError:
    """What a peer is told; messages are cut to a bounded length."""
    return RequestError(
        code=type(error).__name__ if type(error).__name__ in _BY_NAME else "KilotronError",
        message=str(error)[:_MAX_MESSAGE_CHARS],
        retry_after_s=error.retry_after_s if isinstance(error, TryAgainLaterError) else None,
        is_retryable=isinstance(error, EngineDiedError) and error.is_retryable,
    )


def from_wire(error: RequestError) -> KilotronError:
    """The exception again; a class that is not known here becomes the base class."""
    kind = _BY_NAME.get(error.code, KilotronError)
    if issubclass(kind, TryAgainLaterError):
        return kind(error.message, error.retry_after_s)
    if issubclass(kind, EngineDiedError):
        return kind(error.message, is_retryable=error.is_retryable)
    return kind(error.message)
