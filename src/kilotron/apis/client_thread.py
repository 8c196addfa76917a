"""ClientThread: an CoordinatorConnection in an event loop and a thread of its own, for callers in any other."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from kilotron.coordinator.coordinator_connection import CoordinatorConnection
from kilotron.coordinator.credentials import Credentials

T = TypeVar("T")


class ClientThread:
    """Starts the thread; `close` ends it."""

    def __init__(self, credentials: Credentials) -> None:
        self.client = CoordinatorConnection(credentials, role="controller")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kilotron-client", daemon=True)
        self._thread.start()
        self.run(self.client.start())

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Runs a coroutine in the client's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same, waiting for its result; what interrupts the wait cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Idempotent."""
        if self._loop.is_closed():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self.client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
