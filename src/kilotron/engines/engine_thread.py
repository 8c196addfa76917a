"""EngineThread: runs an engine in a background thread for callers in any other. Callers never wait for a step."""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.request_end import Listener
from kilotron.errors import EngineClosedError, KilotronError, RequestNotFoundError, StepFailedError
from kilotron.inference_request import InferenceRequest

_log = logging.getLogger(__name__)

# Called in the engine's thread when a request could not be taken in after all.
Refusal = Callable[[KilotronError], None]


class EngineThread:
    """The one thread that touches the engine; all else goes through its inbox.

    The inbox is bounded by the callers: each waits for the request it put in.
    """

    def __init__(self, engine: DynamicInferenceEngine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="kilotron-engine", daemon=True)
        self._thread.start()

    def submit(self, request: InferenceRequest, listener: Listener, on_refusal: Refusal) -> None:
        """Hands a checked request over. `listener` gets its output, or `on_refusal` the reason why there is none.

        Raises:
            EngineClosedError: the thread is closing.
        """

        def add() -> None:
            try:
                self._engine.add_request(request, listener=listener)
            except KilotronError as error:
                on_refusal(error)
            except Exception as error:
                _log.exception("request %d could not be added", request.request_id)
                on_refusal(StepFailedError(f"request {request.request_id} could not be added: {error}"))

        self._put(add)

    def abort(self, request_id: int) -> None:
        """Asks for a request's end; too late is no error."""

        def abort() -> None:
            with suppress(RequestNotFoundError):
                self._engine.abort(request_id)

        with suppress(EngineClosedError):
            self._put(abort)

    def close(self) -> None:
        """Aborts what is left, ends the thread and gives the engine's memory back. Idempotent."""
        with self._lock:
            if not self._is_closing:
                self._is_closing = True
                self._inbox.put(self._engine.close)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _put(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._is_closing:
                raise EngineClosedError("the engine is shut down; build a new one")
            self._inbox.put(command)

    def _run(self) -> None:
        while True:
            try:
                self._serve()
                return
            except BaseException as error:
                # A fault of ours, not of a request's, or an exit called for where it ends only a thread. Nobody may
                # be left waiting: the closed engine refuses whatever still comes in.
                _log.exception("the engine failed")
                self._engine.close(f"it failed with {type(error).__name__}: {error}")

    def _serve(self) -> None:
        while True:
            while not self._engine.has_unfinished_requests or not self._inbox.empty():
                self._inbox.get()()
                if self._is_closing and self._inbox.empty():
                    return
            self._engine.step()
