"""What happens where a request ends or hands out output, with nothing that goes wrong there reaching other requests."""

import logging
from collections.abc import Callable

from kilotron.errors import DeadlineExceededError, KilotronError, RequestAbortedError, StepFailedError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.text_generation_controllers.generation_progress import GenerationProgress
from kilotron.text_generation_controllers.stream_item import StreamItem

_log = logging.getLogger(__name__)

# Called in the engine's thread with each new piece of a request's output, the last one with a finish reason.
Listener = Callable[[InferenceRequest, StreamItem], None]

FINAL_STATUS = {"error": Status.FAILED, "abort": Status.CANCELLED, "deadline": Status.CANCELLED}
"""By finish reason; any other is COMPLETED."""


def error_of(request: InferenceRequest, reason: str) -> KilotronError | None:
    """What a caller is told of a request that did not get to its end."""
    if reason == "abort":
        return RequestAbortedError(f"request {request.request_id} was aborted")
    if reason == "deadline":
        return DeadlineExceededError(f"request {request.request_id} did not finish before its deadline")
    return None


def caused(error: StepFailedError, cause: Exception) -> StepFailedError:
    """The error, with what was behind it."""
    error.__cause__ = cause
    return error


def finish(progress: GenerationProgress, reason: str, error: KilotronError | None) -> None:
    """A request ends even if its text cannot be completed."""
    try:
        progress.finish(reason, error)
    except Exception as cause:
        request = progress.request
        _log.exception("request %d: its text could not be completed", request.request_id)
        if request.error is None:
            request.finish_reason = "error"
            request.error = StepFailedError(f"request {request.request_id}: its text could not be completed: {cause}")


def last_item(progress: GenerationProgress) -> StreamItem:
    """What is new at a request's end; of the end, at least, a listener must hear."""
    request = progress.request
    try:
        item = progress.take_item()
    except Exception:
        _log.exception("request %d: its last output could not be handed over", request.request_id)
        item = None
    return item or StreamItem("", (), None, None, request.finish_reason)


def tell(listener: Listener, request: InferenceRequest, item: StreamItem) -> bool:
    """Hands a piece of output over; False when the listener failed, which must not hurt other requests."""
    try:
        listener(request, item)
    except Exception:
        _log.exception("request %d: its listener failed", request.request_id)
        return False
    return True
