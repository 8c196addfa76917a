"""The report: one Markdown table per workload, and the same as JSON."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workloads.definitions import WORKLOADS, Figure
from workloads.machine_limits import MachineLimits
from workloads.session import Run
from workloads.shapes import Shape
from workloads.summary import Line, Spread
from workloads.systems import System


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that one session found."""

    shape: Shape
    num_threads: int
    divisor: int
    limits: MachineLimits
    systems: Sequence[System]
    facts: dict[str, dict[str, Any]]
    failures: dict[str, str]
    runs: Sequence[Run]
    lines: Sequence[Line]

    def to_markdown(self) -> str:
        """Tables for people; a star marks figures whose runs were all disturbed."""
        parts = [self._heading()]
        for letter, workload in WORKLOADS.items():
            lines = [line for line in self.lines if line.workload == letter]
            if lines:
                parts.append(f"### {letter}: {workload.title}\n\n{_table(lines, workload.figures)}")
        if any(not line.is_sure for line in self.lines):
            parts.append("\\* rests on disturbed runs alone: others used 5 % of the machine or more in each.")
        if self.failures:
            parts.append("\n".join(f"Left out: {text.splitlines()[0]}" for text in self.failures.values()))
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": {"cpu": cpu_name(), "num_cpus": os.cpu_count(), "num_threads": self.num_threads},
            "limits": self.limits.rates._asdict() | {"unit": self.limits.unit, "note": self.limits.note},
            "model": asdict(self.shape),
            "lengths_divided_by": self.divisor,
            "systems": {
                system.name: {
                    "precision": system.precision,
                    "weight_bits": system.weight_bits,
                    "options": system.options,
                }
                | self.facts.get(system.name, {})
                for system in self.systems
            },
            "failures": self.failures,
            "summary": [line.to_json() for line in self.lines],
            "runs": [run.to_json() for run in self.runs],
        }

    def _heading(self) -> str:
        rows = [
            f"## {self.shape.name}, random weights",
            f"{cpu_name()}, {self.num_threads} threads; {self.limits.describe()}.",
        ]
        versions = [f"{name} {facts['version']}" for name, facts in self.facts.items() if "version" in facts]
        if versions:
            rows.append(f"Systems: {', '.join(versions)}.")
        if self.divisor > 1:
            rows.append(f"A quick run: all lengths divided by {self.divisor}; not for comparison with full runs.")
        return "\n\n".join(rows)


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor, as it calls itself."""
    if path.exists():
        for row in path.read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _table(lines: Sequence[Line], figures: Sequence[Figure]) -> str:
    names = [f"{figure.label}, {figure.unit}" for figure in figures]
    header = ["system", *names, "to best peer", "share of limit", "runs"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for line in lines:
        cells = [_cell(line.figures.get(figure.name)) for figure in figures]
        cells[0] += _star(is_sure=line.is_sure)
        ratio = _factor(line.ratio_to_best_peer) + _star(is_sure=line.is_ratio_sure or line.ratio_to_best_peer is None)
        runs = f"{line.num_counted}" + (f" (+{line.num_disturbed} disturbed)" if line.num_disturbed else "")
        rows.append([line.system, *cells, ratio, _percent(line.limit_share), runs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{format_number(spread.median)} [{format_number(spread.low)}-{format_number(spread.high)}]"


def _star(*, is_sure: bool) -> str:
    return "" if is_sure else "\\*"


def format_number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
