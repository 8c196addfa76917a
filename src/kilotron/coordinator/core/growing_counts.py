"""GrowingCounts: sums of counters that several processes report, each from zero at its start; they never go back."""

from collections import Counter, OrderedDict
from collections.abc import Mapping

_MOST_NAMES = 1024
_MOST_NAME_CHARS = 128


class GrowingCounts:
    """The newest report of each source; those of the oldest ones are folded into one.

    Args:
        max_sources: remembered one by one. A source beyond that must not report again.
    """

    def __init__(self, max_sources: int = 1024) -> None:
        self._max_sources = max_sources
        self._reports: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._folded: Counter[str] = Counter()

    def report(self, source: str, counts: Mapping[str, float]) -> None:
        """Takes a source's newest figures; smaller ones than before, and names without end, are left out."""
        report = self._reports.setdefault(source, {})
        self._reports.move_to_end(source)
        for name, value in counts.items():
            is_known = name in report
            if (is_known or (len(report) < _MOST_NAMES and len(name) <= _MOST_NAME_CHARS)) and value > report.get(
                name, 0
            ):
                report[name] = value
        while len(self._reports) > self._max_sources:
            _, oldest = self._reports.popitem(last=False)
            self._folded.update(oldest)

    def read(self) -> dict[str, float]:
        """Sums over all sources that there ever were."""
        sums: Counter[str] = Counter(self._folded)
        for report in self._reports.values():
            sums.update(report)
        return dict(sums)
