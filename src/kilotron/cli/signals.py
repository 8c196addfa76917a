"""What Ctrl-C and SIGTERM do to a command: end it, or only stop the work at hand.

An engine must not be interrupted in the middle of a step if it is to be used afterwards; `soft` is for that.
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


class Signals:
    """Installs the handlers while a command runs.

    The first Ctrl-C raises KeyboardInterrupt (a clean end), the second one leaves at once. SIGTERM ends with 143.
    """

    current: "Signals | None" = None
    """The one in force; None outside of a command."""

    def __init__(self) -> None:
        self.num_interrupts = 0
        self._is_soft = False
        self._before: dict[int, Any] = {}
        self._outer: Signals | None = None

    @contextmanager
    def soft(self) -> Iterator["SoftInterrupt"]:
        """Within it the first Ctrl-C only sets a flag, to be looked at between two steps."""
        self.num_interrupts = 0
        self._is_soft = True
        try:
            yield SoftInterrupt(self)
        finally:
            self._is_soft = False
            self.num_interrupts = 0

    def __enter__(self) -> Self:
        self._outer, Signals.current = Signals.current, self
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt),
                signal.SIGTERM: signal.signal(signal.SIGTERM, _on_terminate),
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Signals.current = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.num_interrupts += 1
        if self._is_soft and self.num_interrupts == 1:
            return
        if self.num_interrupts > 2:
            os._exit(EXIT_INTERRUPTED)  # the clean end hangs, and the user has asked three times
        raise KeyboardInterrupt


class SoftInterrupt:
    """Whether the user wants the work at hand to stop."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __bool__(self) -> bool:
        return self._signals.num_interrupts > 0


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_TERMINATED)
