"""LoadPhases: how long the parts of loading a model took, and how many bytes they dealt with."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class LoadPhase(NamedTuple):
    """One part of loading."""

    name: str
    seconds: float
    num_bytes: int | None = None
    """Moved or set aside; None where that says nothing."""
    is_transfer: bool = False
    """Whether the bytes were moved, so that there is a rate."""


class LoadPhases:
    """Phases one after the other; a dozen clock readings per model, so they are always on."""

    def __init__(self) -> None:
        self.done: list[LoadPhase] = []

    @contextmanager
    def measure(self, name: str, num_bytes: int | None = None, *, is_transfer: bool = False) -> Iterator[None]:
        """Adds a phase, when it ends without an error."""
        start = time.perf_counter()
        yield
        self.done.append(LoadPhase(name, time.perf_counter() - start, num_bytes, is_transfer))
