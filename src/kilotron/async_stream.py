"""AsyncStream: a bounded, cancellable stream from the engine's thread to one asyncio reader.

The engine never waits for a reader: when `limit` items are unread, new ones are combined with the last. Knows
nothing of requests; items are whatever `combine` can put together.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """Items put from any thread, read with `async for` in the loop the stream was made for.

    Args:
        request_id: whose stream it is.
        combine: joins two neighbouring items into one; called when the reader is slow.
        cancel: called once with the request id when the reader leaves, or its loop closes, before the end; in the
            reader's thread, or the producer's.
        loop: the reader's event loop; None takes the running one.
        limit: most unread items held.
    """

    def __init__(
        self,
        request_id: int | str,
        *,
        combine: Callable[[T, T], T],
        cancel: Callable[[Any], None],
        loop: asyncio.AbstractEventLoop | None = None,
        limit: int = 64,
    ) -> None:
        self.request_id = request_id
        self._combine = combine
        self._cancel: Callable[[Any], None] | None = cancel
        self._loop = loop or asyncio.get_running_loop()
        self._limit = limit
        self._items: deque[T] = deque()
        self._error: BaseException | None = None
        self._is_finished = False
        self._lock = threading.Lock()
        self._changed = asyncio.Event()

    def put(self, item: T) -> None:
        """Adds an item; safe from any thread; ignored after the end."""
        with self._lock:
            if self._is_finished:
                return
            if len(self._items) >= self._limit:
                item = self._combine(self._items.pop(), item)
            self._items.append(item)
        self._wake()

    def finish(self, error: BaseException | None = None) -> None:
        """Ends the stream, with an error for the reader or without; only the first call counts."""
        with self._lock:
            if self._is_finished:
                return
            self._is_finished = True
            self._error = error
        self._wake()

    @property
    def is_finished(self) -> bool:
        """Whether no further item will be put (unread ones may be left)."""
        return self._is_finished

    def leave(self) -> None:
        """Tells the producer that nobody reads any more. Idempotent; does nothing after the end."""
        self._leave()
        self._wake()

    async def aclose(self) -> None:
        """The same, as asynchronous generators have it."""
        self.leave()

    def __aiter__(self) -> AsyncIterator[T]:
        return self.generator()

    async def generator(self) -> AsyncGenerator[T, None]:
        """Yields items until the end; leaving early cancels the producer."""
        try:
            while True:
                with self._lock:
                    self._changed.clear()
                    batch = list(self._items)
                    self._items.clear()
                    is_finished = self._is_finished
                for item in batch:
                    yield item
                if is_finished:
                    if self._error is not None:
                        raise self._error
                    return
                if not batch:
                    await self._changed.wait()
        finally:
            await self.aclose()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:
            # The reader's loop is closed: nobody will ever read this, which is the same as having left.
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            was_finished, self._is_finished = self._is_finished, True
            cancel, self._cancel = self._cancel, None
        if cancel is not None and not was_finished:
            cancel(self.request_id)
