"""Trace: how long named things took, as a file that Chrome and Perfetto show, and as totals.

Knows nothing of models and engines: others name what they do and let it run through `Trace.run`. One thread at a time;
what runs inside another nests. Memory is bounded: beyond a number of events only the totals go on.
"""

import json
import os
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO, TypeVar

from kilotron.errors import ConfigError

R = TypeVar("R")

MAX_EVENTS = 1_000_000
_NO_ARGUMENTS: Mapping[str, int] = MappingProxyType({})


class Total(NamedTuple):
    """All calls of one name."""

    name: str
    category: str
    num_calls: int
    seconds: float
    """Spent in them, what ran inside included."""
    own_seconds: float
    """Without what ran inside and was named too."""


class _Label(NamedTuple):
    name: str
    category: str
    arguments: tuple[tuple[str, int], ...]


class Trace:
    """Records spans and writes them to a file.

    Args:
        path: where `write` puts them.
        max_events: spans kept for the file; 32 bytes each.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_events: int = MAX_EVENTS) -> None:
        check_writable(path)
        self.path = Path(path)
        self.num_dropped = 0
        """Spans that are in the totals only."""
        self._max_events = max_events
        self._labels: dict[_Label, int] = {}
        # One entry per event in each; arrays, because a million tuples would take ten times as much.
        self._events = array("q")  # label
        self._starts = array("q")  # nanoseconds of the monotonic clock
        self._durations = array("q")  # nanoseconds
        self._threads = array("q")
        self._totals: dict[tuple[str, str], list[int]] = {}  # (name, category) -> calls, nanoseconds, own nanoseconds
        self._inner_ns = 0  # named time inside the span that runs now
        self._started_ns = time.perf_counter_ns()

    def run(
        self,
        function: Callable[..., R],
        *args: Any,
        name: str,
        category: str,
        arguments: Mapping[str, int] = _NO_ARGUMENTS,
    ) -> R:
        """Calls the function as a span; `arguments` are numbers shown with it, as they are when it ends."""
        outer_ns, self._inner_ns = self._inner_ns, 0
        start = time.perf_counter_ns()
        try:
            return function(*args)
        finally:
            duration = time.perf_counter_ns() - start
            own = duration - self._inner_ns
            self._inner_ns = outer_ns + duration
            self._count(name, category, duration, own)
            self._keep(_Label(name, category, tuple(arguments.items())), start, duration)

    def totals(self) -> list[Total]:
        """Per name and category, in order of first use."""
        return [
            Total(name, category, calls, total * 1e-9, own * 1e-9)
            for (name, category), (calls, total, own) in self._totals.items()
        ]

    def write(self) -> None:
        """Writes all spans so far. The file appears whole or not at all.

        Raises:
            OSError: the disk is full, say.
        """
        part = self.path.with_name(self.path.name + ".part")
        try:
            with part.open("w", encoding="utf-8") as stream:
                self._write_events(stream)
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    def _count(self, name: str, category: str, duration: int, own: int) -> None:
        total = self._totals.get((name, category))
        if total is None:
            total = self._totals[name, category] = [0, 0, 0]
        total[0] += 1
        total[1] += duration
        total[2] += own

    def _keep(self, label: _Label, start: int, duration: int) -> None:
        if len(self._events) >= self._max_events:
            self.num_dropped += 1
            return
        self._events.append(self._labels.setdefault(label, len(self._labels)))
        self._starts.append(start)
        self._durations.append(duration)
        self._threads.append(threading.get_native_id())

    def _write_events(self, stream: TextIO) -> None:
        about: dict[str, object] = {"dropped_events": self.num_dropped}
        if self.num_dropped:
            about["note"] = f"only the first {self._max_events} spans are shown"
        stream.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [\n')
        events = self._described_events()
        stream.write(next(events))
        for event in events:
            stream.write(",\n" + event)
        stream.write("\n]}\n")

    def _described_events(self) -> Iterator[str]:
        """Each event as JSON, by the trace event format: times in microseconds."""
        process = os.getpid()
        yield _metadata("process_name", f"kilotron {' '.join(sys.argv[1:3])}".rstrip(), process, process)
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        for thread in sorted(set(self._threads)):
            yield _metadata("thread_name", names.get(thread, f"thread {thread}"), process, thread)
        heads = [_head(label) for label in self._labels]
        for event, start, duration, thread in zip(
            self._events, self._starts, self._durations, self._threads, strict=True
        ):
            start_us, duration_us = (start - self._started_ns) / 1000, duration / 1000
            yield f'{heads[event]}, "ts": {start_us:.3f}, "dur": {duration_us:.3f}, "pid": {process}, "tid": {thread}}}'


def check_writable(path: str | os.PathLike[str]) -> None:
    """Says at once when a trace could not be written in the end; touches nothing.

    Raises:
        ConfigError: it could not.
    """
    file = Path(path)
    folder = file.absolute().parent
    if not folder.is_dir():
        reason = f"there is no folder {folder}"
    elif file.exists() and not file.is_file():
        reason = "it is not a regular file"
    elif not os.access(folder, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        reason = "permission denied"
    else:
        return
    raise ConfigError(f"profile {str(path)!r} cannot be written: {reason}; give a file where you may write")


def _head(label: _Label) -> str:
    """An event's JSON up to its times, left open."""
    fields: dict[str, object] = {"ph": "X", "name": label.name, "cat": label.category}
    if label.arguments:
        fields["args"] = dict(label.arguments)
    return json.dumps(fields)[:-1]


def _metadata(kind: str, name: str, process: int, thread: int) -> str:
    return json.dumps({"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}})
