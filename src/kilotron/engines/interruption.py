"""Ctrl-C between two steps instead of in the middle of one, so that an engine can be used afterwards."""

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_uninterrupted(step: Callable[[], T]) -> T:
    """Runs a step; a Ctrl-C that comes meanwhile raises KeyboardInterrupt after it.

    Programs with a handler of their own, and other threads (which Ctrl-C never reaches), are left alone.
    """
    is_reached = threading.current_thread() is threading.main_thread()
    if not is_reached or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return step()
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        result = step()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupts:
        raise KeyboardInterrupt
    return result
