"""StartReport: where the time from the start of the process to the first token and beyond went, for --verbose."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kilotron.cli.output import format_bytes, format_table

if TYPE_CHECKING:
    from kilotron.apis.load_phases import LoadPhase

LOAD = "load"
_HEADER = ("phase", "seconds", "bytes", "GB/s")


class StartReport:
    """Notes the ends of phases, and tells once what they took."""

    def __init__(self) -> None:
        self._process_started = time.monotonic() - process_age_s()
        self._marks: dict[str, float] = {}
        self._parts: list[LoadPhase] = []
        self._is_told = False

    def mark(self, phase: str) -> None:
        """A phase has just ended; only the first mark of a phase counts."""
        self._marks.setdefault(phase, time.monotonic() - self._process_started)

    def add_load_phases(self, parts: "list[LoadPhase]") -> None:
        """What the phase `LOAD` consisted of."""
        self._parts = parts

    def tell(self) -> None:
        """Prints the table, the first time."""
        if not self._is_told:
            self._is_told = True
            print(self.describe(), file=sys.stderr)

    def describe(self) -> str:
        """A row for each phase, their sum, and the most memory the process had."""
        rows = list(self._rows())
        rows.append(("in all", f"{max(self._marks.values(), default=0.0):.3f}", "", ""))
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append(("most memory resident", "", format_bytes(peak_bytes), ""))
        return format_table(rows, _HEADER, right=(1, 2, 3))

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        before = 0.0
        for phase, at in self._marks.items():
            seconds, before = at - before, at
            if phase != LOAD:
                yield phase, f"{seconds:.3f}", "", ""
                continue
            for part in self._parts:
                yield _row_of(part)
            yield "rest of loading", f"{seconds - sum(part.seconds for part in self._parts):.3f}", "", ""


def process_age_s() -> float:
    """To a tick of 10 ms. From the wall clock it would be wrong by up to a second, which is how exactly the time of the
    boot is known; 0 where there is no such file."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _row_of(part: "LoadPhase") -> tuple[str, str, str, str]:
    if part.num_bytes is None:
        return part.name, f"{part.seconds:.3f}", "", ""
    rate = f"{part.num_bytes / part.seconds / 1e9:.2f}" if part.is_transfer else ""
    return part.name, f"{part.seconds:.3f}", format_bytes(part.num_bytes), rate
