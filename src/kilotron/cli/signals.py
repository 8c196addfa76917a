"""What Ctrl-C and SIGTERM do to a command: end it, or only stop the work at hand.

An engine must not be interrupted in the middle of a step if it is to be used afterwards; `soft` is for that. Code of
others that swallows exceptions must not be interrupted by one; `leaving_at_once` is for that.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
_PATIENCE = 3


class Signals:
    """Installs the handlers while a command, or a part of it, runs.

    Ctrl-C raises KeyboardInterrupt (a clean end); the fourth one leaves at once. SIGTERM ends with 143.
    """

    def __init__(self) -> None:
        self.num_interrupts = 0
        self._is_soft = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def soft(self) -> Iterator["SoftInterrupt"]:
        """Within it Ctrl-C only sets a flag, to be looked at between two steps; the third one raises all the same."""
        self.num_interrupts = 0
        self._is_soft = True
        try:
            yield SoftInterrupt(self)
        finally:
            self._is_soft = False
            self.num_interrupts = 0

    def forget(self) -> None:
        """The interrupts so far have been dealt with."""
        self.num_interrupts = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt),
                signal.SIGTERM: signal.signal(signal.SIGTERM, _on_terminate),
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.num_interrupts += 1
        if self.num_interrupts > _PATIENCE:
            os._exit(EXIT_INTERRUPTED)  # the clean end hangs, and the user has asked often enough
        if self._is_soft and self.num_interrupts < _PATIENCE:
            return
        raise KeyboardInterrupt


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within it both signals end the process on the spot: for imports, which hold nothing that must be put in order.

    An exception raised by a handler surfaces wherever the program is, and importing torch passes places that swallow
    every exception: the interrupt would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in _EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SoftInterrupt:
    """Whether the user wants the work at hand to stop."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __call__(self) -> bool:
        return self._signals.num_interrupts > 0


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_EXIT_CODES[signal.Signals(number)])


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_TERMINATED)
