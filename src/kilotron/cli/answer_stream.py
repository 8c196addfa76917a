"""One request's text as it grows, step by step, with a place between two steps to stop."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kilotron.engines.dynamic_engine import DynamicInferenceEngine
    from kilotron.inference_request import InferenceRequest


def stream_text(
    engine: "DynamicInferenceEngine", request: "InferenceRequest", is_stopped: Callable[[], bool] = bool
) -> Iterator[str]:
    """Starts a request made by `engine.build_streaming` and returns its text piece by piece.

    Stopping it, or leaving early, aborts the request between two steps: a step must not be broken off.

    Raises:
        InvalidRequestError: it can never run; raised at once.
        KilotronError: it failed; raised by the iterator.
    """
    pieces: list[str] = []
    engine.add_request(request, listener=lambda _, item: pieces.append(item.text))
    return _run(engine, request, pieces, is_stopped)


def _run(
    engine: "DynamicInferenceEngine", request: "InferenceRequest", pieces: list[str], is_stopped: Callable[[], bool]
) -> Iterator[str]:
    try:
        while not request.is_finished and not is_stopped():
            engine.step()
            yield from _taken(pieces)
    finally:
        was_aborted = not request.is_finished
        if was_aborted:
            engine.abort(request.request_id)
    yield from _taken(pieces)  # what an answer that was stopped still held back
    if request.error is not None and not was_aborted:
        raise request.error


def _taken(pieces: list[str]) -> list[str]:
    taken = [piece for piece in pieces if piece]
    pieces.clear()
    return taken
