"""What the rest of the machine does while a run is timed: the gate before it, the accounting during it.

Foreign is all CPU time that neither the timed system nor this command used, as a share of all CPUs. Idle systems that
stay loaded count as foreign: one that does not stay idle must not go unseen.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

# A run begins when others use less than this share of the machine, and counts when they used less than the second.
QUIET_SHARE = 0.04
COUNTED_SHARE = 0.05
GATE_WINDOW_S = 1.5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Busy(NamedTuple):
    """CPU seconds since the machine started."""

    used_s: float
    stolen_s: float
    """Taken by the host of a virtual machine."""


class LoadMeter:
    """Shares of the machine that a block of code saw used; `own` names the processes whose trees are the run's."""

    def __init__(self, own: Iterable[int] = ()) -> None:
        self.foreign = self.stolen = self.own = self.wall_s = 0.0
        self._processes = {os.getpid(), *own}

    @property
    def is_counted(self) -> bool:
        """Whether others left the run alone."""
        return self.foreign < COUNTED_SHARE

    def add(self, process_id: int) -> None:
        """A process that started inside of the block is the run's too."""
        self._processes.add(process_id)

    def __enter__(self) -> Self:
        self._busy, self._own_s, self._start = read_busy(), self._measure_own(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self._start
        busy, own_s = read_busy(), self._measure_own() - self._own_s
        capacity_s = self.wall_s * (os.cpu_count() or 1)
        self.own = own_s / capacity_s
        self.foreign = max(0.0, busy.used_s - self._busy.used_s - own_s) / capacity_s
        self.stolen = (busy.stolen_s - self._busy.stolen_s) / capacity_s

    def _measure_own(self) -> float:
        return sum(_cpu_seconds(process, is_tree=process != os.getpid()) for process in self._processes)


def wait_until_quiet(timeout_s: float) -> bool:
    """Returns whether others left the machine alone for a moment before the time was up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with LoadMeter() as meter:
            time.sleep(GATE_WINDOW_S)
        if meter.foreign < QUIET_SHARE:
            return True
    return False


def read_busy(path: Path = Path("/proc/stat")) -> Busy:
    """The machine's own count."""
    fields = path.read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, stolen, *_guests = map(int, fields)
    return Busy((user + nice + system + irq + softirq) / _TICKS_PER_S, stolen / _TICKS_PER_S)


def _cpu_seconds(process_id: int, *, is_tree: bool) -> float:
    """Of a process and the children it has waited for; with the living descendants where asked."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process_id)
        total = sum(root.cpu_times()[:4])
        for child in root.children(recursive=True) if is_tree else ():
            with contextlib.suppress(psutil.Error):
                total += sum(child.cpu_times()[:4])
    return total
