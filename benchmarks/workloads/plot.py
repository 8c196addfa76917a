"""The report as a picture: a panel per workload, a bar per system. Needs matplotlib, which nothing else here does."""

from pathlib import Path
from typing import Any

from workloads.definitions import WORKLOADS
from workloads.report import Report, format_number
from workloads.summary import Line

COLUMNS = 3
PANEL_INCHES = (4.6, 2.9)
OWN_COLOUR, PEER_COLOUR = "#c4572b", "#8a99a8"
FADED = 0.4


def save_plot(report: Report, path: Path) -> None:
    """Writes the picture in the format that the path's ending names.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    letters = [letter for letter in WORKLOADS if any(line.workload == letter for line in report.lines)]
    columns = min(COLUMNS, len(letters))
    rows = -(-len(letters) // columns)
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.4)
    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    own = {system.name for system in report.systems if not system.is_peer}
    for panel in panels.flat[len(letters) :]:
        panel.set_axis_off()
    for letter, panel in zip(letters, panels.flat, strict=False):
        _draw(panel, letter, [line for line in report.lines if line.workload == letter], own)
    figure.suptitle(f"{report.shape.name}, {report.num_threads} threads; {report.limits.describe()}", fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw(panel: Any, letter: str, lines: list[Line], own: set[str]) -> None:
    """Bars with their ranges; a dotted mark where the machine's limit is; disturbed figures are faded."""
    main = WORKLOADS[letter].figures[0]
    for place, line in enumerate(reversed(lines)):
        spread = line.figures.get(main.name)
        if spread is None:
            continue
        reach = [[spread.median - spread.low], [spread.high - spread.median]]
        colour = OWN_COLOUR if line.system in own else PEER_COLOUR
        panel.barh(place, spread.median, xerr=reach, color=colour, alpha=1.0 if line.is_sure else FADED, height=0.7)
        panel.annotate(f" {format_number(spread.median)}", (spread.high, place), va="center", fontsize=8)
        if line.limit_share:
            limit = spread.median / line.limit_share
            panel.plot([limit, limit], [place - 0.4, place + 0.4], color="black", linestyle=":", linewidth=1.2)
    panel.set_yticks(range(len(lines)), [line.system for line in reversed(lines)], fontsize=8)
    panel.margins(x=0.14)
    panel.locator_params(axis="x", nbins=6)
    better = "higher" if main.is_rate else "lower"
    panel.set_title(f"{letter}: {WORKLOADS[letter].title}", fontsize=8)
    panel.set_xlabel(f"{main.label}, {main.unit}; {better} is better", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
