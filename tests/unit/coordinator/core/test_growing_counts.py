"""Sums over sources that come and go."""

from kilotron.coordinator.core.growing_counts import GrowingCounts


def test_sums_keep_what_sources_that_are_gone_counted() -> None:
    counts = GrowingCounts(max_sources=2)
    for number in range(10):
        counts.report(f"s{number}", {"a": 1, "b": number})
    assert counts.read() == {"a": 10, "b": 45}


def test_a_figure_never_goes_back() -> None:
    counts = GrowingCounts()
    for value in (3, 1, 5, -7):
        counts.report("s", {"a": value})
    assert counts.read() == {"a": 5}


def test_names_without_end_are_left_out() -> None:
    counts = GrowingCounts()
    counts.report("s", {f"n{number}": 1 for number in range(5000)})
    counts.report("s", {"x" * 1000: 1})
    assert len(counts.read()) == 1024
