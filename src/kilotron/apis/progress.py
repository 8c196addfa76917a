"""Progress bars over loading and over an engine's requests, on standard error and only for people."""

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

# Work shorter than this shows nothing.
_DELAY_S = 1.0
_REFRESH_S = 0.1
_REQUESTS_FORMAT = "{percentage:3.0f}%|{bar}| {desc}, {elapsed}<{remaining}{postfix}"


class RequestSource(Protocol):
    """Whose progress is shown: an engine, or requests that run elsewhere."""

    @property
    def num_tokens_generated(self) -> int:
        """So far."""

    @property
    def num_requests_finished(self) -> int:
        """So far, however they ended."""

    @property
    def num_unfinished_requests(self) -> int:
        """Requests waiting or running."""

    def num_requests_done(self) -> float:
        """How much of the unfinished ones is done, in requests."""


class RequestProgressBar:
    """Shows finished requests, tokens per second and the time left, once work has gone on for a moment.

    Args:
        source: whose requests; all that are unfinished when the first step is done count.
        is_wanted: None shows the bar on a terminal only.
    """

    def __init__(self, source: RequestSource, is_wanted: bool | None) -> None:  # noqa: FBT001 - two callers
        self._source = source
        self._is_wanted = sys.stderr.isatty() if is_wanted is None else is_wanted
        self._started = self._drawn = time.monotonic()
        self._tokens_before = source.num_tokens_generated
        self._finished_before = source.num_requests_finished
        self._bar: Any = None

    def update(self) -> None:
        """Called after each step."""
        now = time.monotonic()
        if not self._is_wanted or now - self._started < _DELAY_S or now - self._drawn < _REFRESH_S:
            return
        self._drawn = now
        source = self._source
        finished = source.num_requests_finished - self._finished_before
        total = finished + source.num_unfinished_requests
        if self._bar is None:
            self._bar = _open_bar(now - self._started, total=total, bar_format=_REQUESTS_FORMAT)
        tokens = source.num_tokens_generated - self._tokens_before
        self._bar.set_description_str(f"{finished} of {total} requests", refresh=False)
        self._bar.set_postfix_str(f"{tokens / (now - self._started):.1f} tokens/s", refresh=False)
        self._bar.n = finished + source.num_requests_done()
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class LoadProgressBar:
    """Shows how many bytes of a checkpoint are loaded, once that has gone on for a moment.

    Args:
        is_wanted: None shows the bar on a terminal only.
        doing: what is done with the bytes.
    """

    def __init__(self, *, is_wanted: bool | None, doing: str = "loading") -> None:
        self._doing = doing
        self._is_wanted = sys.stderr.isatty() if is_wanted is None else is_wanted
        self._started = time.monotonic()
        self._bar: Any = None

    def update(self, bytes_done: int, bytes_total: int) -> None:
        """Called as weights come in."""
        elapsed = time.monotonic() - self._started
        if not self._is_wanted or elapsed < _DELAY_S:
            return
        if self._bar is None:
            options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "desc": self._doing}
            self._bar = _open_bar(elapsed, total=bytes_total, **options)
        self._bar.n = bytes_done
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _open_bar(elapsed_s: float, **options: Any) -> Any:
    """A bar whose clock counts from `elapsed_s` ago, so that rate and time left are those of all the work."""
    from tqdm import tqdm  # imported when there is something to show

    bar = tqdm(dynamic_ncols=True, leave=False, file=sys.stderr, **options)
    bar.start_t -= elapsed_s
    return bar
