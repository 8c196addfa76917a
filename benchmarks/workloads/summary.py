"""From runs to the numbers of the report: medians, ranges, ratios to the best peer, shares of the machine's limits."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from workloads.definitions import WORKLOADS, Figure, make_requests
from workloads.session import Run
from workloads.shapes import MachineRates, Shape, limit_of
from workloads.systems import System


class Spread(NamedTuple):
    """Several values of one figure."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One system at one workload."""

    system: str
    workload: str
    num_counted: int
    num_disturbed: int
    figures: Mapping[str, Spread]
    """Of the counted runs; of all where none counts."""
    ratio_to_best_peer: float | None
    """Of the first figure, above 1 is better than the best peer of the same precision."""
    is_ratio_sure: bool
    """Whether all that it compares were undisturbed."""
    limit_share: float | None
    """Of the first figure that the machine limits."""

    @property
    def is_sure(self) -> bool:
        """Whether any run was undisturbed."""
        return self.num_counted > 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"figures": {name: spread._asdict() for name, spread in self.figures.items()}}


def summarize(
    runs: Sequence[Run], systems: Sequence[System], shape: Shape, rates: MachineRates, divisor: int = 1
) -> list[Line]:
    """Lines by workload, in the order of the systems."""
    lines = []
    for letter, workload in WORKLOADS.items():
        results = [_Result(system, [run for run in runs if _is_of(run, system, letter)]) for system in systems]
        results = [result for result in results if result.runs]
        main = workload.figures[0]
        for result in results:
            rivals = [other for other in results if _is_rival(other, result, main)]
            limit = limit_of(
                main.name, shape, make_requests(letter, 0, divisor=divisor), rates, result.system.weight_bits
            )
            own = result.spreads.get(main.name)
            lines.append(
                Line(
                    system=result.system.name,
                    workload=letter,
                    num_counted=result.num_counted,
                    num_disturbed=len(result.runs) - result.num_counted,
                    figures=result.spreads,
                    ratio_to_best_peer=_ratio(own, [rival.spreads[main.name].median for rival in rivals], main),
                    is_ratio_sure=all(each.num_counted > 0 for each in (result, *rivals)),
                    limit_share=own.median / limit if own and limit else None,
                )
            )
    return lines


class _Result:
    """The runs of one system at one workload."""

    def __init__(self, system: System, runs: Sequence[Run]) -> None:
        self.system = system
        self.runs = runs
        self.num_counted = sum(run.is_counted for run in runs)
        used = [run for run in runs if run.is_counted] or runs
        self.spreads: dict[str, Spread] = {}
        for name in {name for run in used for name in run.figures}:
            values = [run.figures[name] for run in used if name in run.figures]
            self.spreads[name] = Spread(statistics.median(values), min(values), max(values))


def _is_of(run: Run, system: System, letter: str) -> bool:
    return run.system == system.name and run.workload == letter


def _is_rival(other: _Result, result: _Result, figure: Figure) -> bool:
    is_comparable = other.system.is_peer and other.system.precision == result.system.precision
    return is_comparable and figure.name in other.spreads


def _ratio(own: Spread | None, rivals: Sequence[float], figure: Figure) -> float | None:
    if own is None or not rivals:
        return None
    return own.median / max(rivals) if figure.is_rate else min(rivals) / own.median
