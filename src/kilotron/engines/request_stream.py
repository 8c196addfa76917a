"""RequestStream: a request of the static engine as it grows, for one asyncio reader."""

import copy
from collections.abc import AsyncGenerator, Callable

from kilotron.async_stream import AsyncStream
from kilotron.errors import InvalidRequestError
from kilotron.inference_request import InferenceRequest
from kilotron.text_generation_controllers.stream_item import StreamItem


class RequestStream:
    """Snapshots of one request: each has all the text and tokens so far, so a slow reader may miss some.

    Args:
        request_id: whose.
        cancel: called with the id when the reader leaves before the end.

    Raises:
        InvalidRequestError: no event loop runs in this thread, so nobody could read.
    """

    def __init__(self, request_id: int, cancel: Callable[[int], None]) -> None:
        try:
            self._stream: AsyncStream[InferenceRequest] = AsyncStream(
                request_id, combine=lambda _earlier, later: later, cancel=cancel
            )
        except RuntimeError as error:
            raise InvalidRequestError(
                "streaming=True needs a running event loop; call add_request inside an async function"
            ) from error
        self._text = ""

    def put(self, request: InferenceRequest, item: StreamItem) -> None:
        """Adds what the request has come to with this item."""
        self._text += item.text
        snapshot = copy.copy(request)
        snapshot.generated_tokens = request.generated_tokens.copy()
        if item.finish_reason is None:
            snapshot.generated_text = self._text
        self._stream.put(snapshot)

    def finish(self, request: InferenceRequest) -> None:
        """The request has ended, well or not. Idempotent."""
        self._stream.finish(request.error)

    def generator(self) -> AsyncGenerator[InferenceRequest, None]:
        """The snapshots, the last one finished.

        Raises:
            KilotronError: (from the iteration) what the request failed with.
        """
        return self._stream.generator()
