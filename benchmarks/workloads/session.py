"""One session: all systems loaded once, then each workload's repetitions, every system in turn within each.

Interleaved so that whatever changes on the machine changes for all. A run that others disturbed is kept, marked, and
tried again a few times.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from workloads.cold_start import measure_cold_start
from workloads.definitions import (
    WORKLOADS,
    Request,
    figures_of_cold_start,
    make_figures,
    make_requests,
    make_warm_up,
)
from workloads.foreign_load import LoadMeter, wait_until_quiet
from workloads.systems import System, SystemFailure, SystemProcess


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the session runs."""

    letters: str
    num_repetitions: int
    num_retries: int
    """Further tries per system and workload when runs were disturbed."""
    num_threads: int
    quiet_timeout_s: float
    divisor: int
    log_folder: Path


@dataclass(frozen=True, kw_only=True)
class Run:
    """One timed run of one system."""

    system: str
    workload: str
    repetition: int
    figures: dict[str, float]
    foreign: float
    """Share of the machine that others used meanwhile."""
    stolen: float
    own: float
    is_counted: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Share of the memory below which systems and their caches of keys and values hardly fit beside each other.
LEAST_MEMORY = 0.3
# Serves the requests: figures, and what happened on the machine meanwhile.
Turn = Callable[[list[Request]], tuple[dict[str, float], LoadMeter]]


class Session:
    """Runs workloads; what it measured is in `runs`, what it learned of the systems in `facts` and `failures`."""

    def __init__(self, systems: Sequence[System], settings: Settings) -> None:
        self._systems = list(systems)
        self._settings = settings
        self.runs: list[Run] = []
        self.facts: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}

    def run(self) -> None:
        """Cold starts first, while nothing is loaded; a system that fails is left out from then on."""
        letters = [letter for letter in WORKLOADS if letter in self._settings.letters]
        self._settings.log_folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            logs = {system.name: stack.enter_context(self._open_log(system)) for system in self._systems}
            for letter in (letter for letter in letters if WORKLOADS[letter].is_cold):
                self.repeat(letter, {system.name: self._cold_turn(system, logs) for system in self._systems})
            warm = [letter for letter in letters if not WORKLOADS[letter].is_cold]
            turns = self._load_all(logs, stack) if warm else {}
            for letter in warm:
                self.repeat(letter, turns)

    def repeat(self, letter: str, turns: dict[str, Turn]) -> None:
        """All repetitions of one workload; `turns` are by the systems' names."""
        num_counted = dict.fromkeys(turns, 0)
        for repetition in range(self._settings.num_repetitions + self._settings.num_retries):
            requests = make_requests(letter, repetition, divisor=self._settings.divisor)
            for name, turn in turns.items():
                if name in self.failures or num_counted[name] >= self._settings.num_repetitions:
                    continue
                wait_until_quiet(self._settings.quiet_timeout_s)
                try:
                    figures, load = turn(requests)
                except SystemFailure as error:
                    self._leave_out(name, error)
                    continue
                num_counted[name] += load.is_counted
                self._note(letter, repetition, name, figures, load)

    def _open_log(self, system: System) -> TextIO:
        return (self._settings.log_folder / f"{system.name.replace(' ', '-')}.log").open("w")

    def _load_all(self, logs: dict[str, TextIO], stack: contextlib.ExitStack) -> dict[str, Turn]:
        turns = {}
        for system in self._systems:
            if system.name in self.failures:
                continue
            tell(f"loading {system.name}")
            try:
                process = stack.enter_context(SystemProcess(system, self._settings.num_threads, logs[system.name]))
                process.run(make_warm_up())
            except SystemFailure as error:
                self._leave_out(system.name, error)
                continue
            self.facts[system.name] = process.facts
            turns[system.name] = _warm_turn(process)
        memory = psutil.virtual_memory()
        if memory.available < LEAST_MEMORY * memory.total:
            tell(
                f"only {memory.available / 1e9:.1f} GB of memory are left for the workloads: runs may wait for "
                "the disk; leave some out with --without, and measure them in another session"
            )
        return turns

    def _cold_turn(self, system: System, logs: dict[str, TextIO]) -> Turn:
        def take(requests: list[Request]) -> tuple[dict[str, float], LoadMeter]:
            start, load = measure_cold_start(system, requests[0], self._settings.num_threads, logs[system.name])
            return figures_of_cold_start(start.first_token_s, start.peak_rss_gb), load

        return take

    def _note(self, letter: str, repetition: int, name: str, figures: dict[str, float], load: LoadMeter) -> None:
        run = Run(
            system=name,
            workload=letter,
            repetition=repetition,
            figures=figures,
            foreign=load.foreign,
            stolen=load.stolen,
            own=load.own,
            is_counted=load.is_counted,
        )
        self.runs.append(run)
        main = WORKLOADS[letter].figures[0]
        value = figures.get(main.name, float("nan"))
        mark = "" if run.is_counted else ": not counted"
        tell(f"{letter}{repetition + 1} {name:24s} {value:9.2f} {main.unit}, others used {load.foreign:.1%}{mark}")

    def _leave_out(self, name: str, error: SystemFailure) -> None:
        self.failures[name] = str(error)
        tell(f"{name} is left out: {error}")


def _warm_turn(process: SystemProcess) -> Turn:
    def take(requests: list[Request]) -> tuple[dict[str, float], LoadMeter]:
        with LoadMeter([process.process_id]) as load:
            timings = process.run(requests)
        return make_figures(requests, timings), load

    return take


def tell(text: str) -> None:
    """Progress goes to standard error: standard output is the report's."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
