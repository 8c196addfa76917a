"""PendingRequests: lets a coroutine wait for requests that run in the engine's thread."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from kilotron.errors import KilotronError
from kilotron.inference_request import InferenceRequest
from kilotron.text_generation_controllers.stream_item import StreamItem

T = TypeVar("T")


class PendingRequests:
    """One call's requests, all their continuations counted. Made in the event loop that waits."""

    def __init__(self, requests: Sequence[InferenceRequest]) -> None:
        self._loop = asyncio.get_running_loop()
        self._unfinished = {choice.request_id for request in requests for choice in request.choices}
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._settle(None)

    @property
    def unfinished_ids(self) -> list[int]:
        """Requests that have not ended, as far as the loop has heard."""
        return sorted(self._unfinished)

    def listen(self, request: InferenceRequest, item: StreamItem) -> None:
        """Called in the engine's thread with each piece of output."""
        if item.finish_reason is not None:
            self._tell(self._end, request.request_id)

    def refuse(self, error: KilotronError) -> None:
        """Called in the engine's thread when a request was not taken in."""
        self._tell(self._settle, error)

    async def wait(self) -> None:
        """Returns when all have ended; raises the reason if one was refused."""
        await self._done

    def _end(self, request_id: int) -> None:
        self._unfinished.discard(request_id)
        self._settle(None)

    def _settle(self, error: KilotronError | None) -> None:
        if self._done.done():
            return
        if error is not None:
            self._done.set_exception(error)
        elif not self._unfinished:
            self._done.set_result(None)

    def _tell(self, callback: Callable[[T], None], argument: T) -> None:
        # A closed loop means that the caller is gone, and with it whoever could be told.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)
