"""Histograms of a service: counts per bucket, with the bounds that vLLM's dashboards expect."""

from bisect import bisect_left

from kilotron.coordinator.wire import HistogramFigures

FIRST_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                      40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
INTER_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                      40.0, 80.0)  # fmt: skip
REQUEST_BOUNDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                  480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
TOKEN_BOUNDS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


class Histogram:
    """Values counted by the smallest bound that they do not exceed."""

    __slots__ = ("_bounds", "_counts", "_num_values", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._num_values = 0
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value, several times if so wished."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._num_values += times
        self._total += value * times

    @property
    def mean(self) -> float:
        """0 before the first value."""
        return self._total / max(self._num_values, 1)

    def read(self) -> HistogramFigures:
        """As it is now."""
        return HistogramFigures(list(self._bounds), list(self._counts), self._total)
