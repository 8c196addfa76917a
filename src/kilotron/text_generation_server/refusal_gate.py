"""RefusalGate: while every place of the queue is taken, requests are refused before they are looked at.

Under overload most requests are refused, and each that is parsed, tokenized and sent to the coordinator first takes
time from those that are served.
"""

import time
from collections.abc import Callable

from kilotron.errors import NoPlaceInQueueError
from kilotron.text_generation_server.http_errors import http_error_of

# Short against the time in which a queue runs empty, long against what asking the coordinator costs.
_CLOSED_S = 0.03


class RefusalGate:
    """Closes for a moment when the coordinator had no place for a request; the next request after it asks again.

    Args:
        clock: tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opens_at = 0.0
        self._refusal = NoPlaceInQueueError()

    def close(self, refusal: NoPlaceInQueueError) -> None:
        """The coordinator has refused a request."""
        self._opens_at = self._clock() + _CLOSED_S
        self._refusal = refusal

    def check(self) -> None:
        """Whether it makes sense to ask for a place.

        Raises:
            HttpError: 503, as the coordinator's refusal.
        """
        if self._clock() < self._opens_at:
            raise http_error_of(self._refusal)
