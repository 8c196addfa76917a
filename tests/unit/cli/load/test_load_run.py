"""Tests of when requests are sent."""

import itertools
import math
import statistics

import pytest

from kilotron.cli.load.load_run import Pace, arrival_times


def pace(rate: float, burstiness: float = 1.0) -> Pace:
    return Pace(request_rate=rate, burstiness=burstiness, max_concurrency=None, timeout_s=1.0)


def gaps(rate: float, burstiness: float, seed: int = 1) -> list[float]:
    times = [0.0, *arrival_times(2000, pace(rate, burstiness), seed)]
    return [after - before for before, after in itertools.pairwise(times)]


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert arrival_times(3, pace(math.inf), 0) == [0.0, 0.0, 0.0]


def test_the_last_request_is_sent_when_the_rate_says() -> None:
    assert arrival_times(50, pace(5.0), 7)[-1] == pytest.approx(10.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 100.0])
def test_burstiness_sets_the_spread_of_the_gaps(burstiness: float) -> None:
    found = gaps(10.0, burstiness)
    assert statistics.fmean(found) == pytest.approx(0.1)
    assert statistics.stdev(found) / 0.1 == pytest.approx(burstiness**-0.5, rel=0.15)


def test_the_seed_decides_the_times() -> None:
    assert gaps(10.0, 1.0, seed=1) == gaps(10.0, 1.0, seed=1) != gaps(10.0, 1.0, seed=2)
