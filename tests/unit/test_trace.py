"""Tests of Trace: what is recorded, how it nests, where it is written, and what happens when it is full."""

import json
from pathlib import Path
from typing import Any

import pytest

from kilotron.errors import ConfigError
from kilotron.trace import Trace, check_writable


def record(trace: Trace, *inner: str, name: str = "outer") -> None:
    """One span around others."""

    def call() -> None:
        for each in inner:
            trace.run(int, name=each, category="inner")

    trace.run(call, name=name, category="outer", arguments={"count": len(inner)})


def spans_of(trace: Trace) -> list[dict[str, Any]]:
    trace.write()
    events = json.loads(trace.path.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event["ph"] == "X"]


def test_a_span_gives_the_result_of_what_it_runs(tmp_path: Path) -> None:
    assert Trace(tmp_path / "t.json").run(divmod, 7, 2, name="n", category="c") == (3, 1)


def test_spans_carry_name_category_numbers_times_and_place(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    record(trace, "a")

    outer = spans_of(trace)[-1]
    assert (outer["name"], outer["cat"], outer["args"]) == ("outer", "outer", {"count": 1})
    assert {"ts", "dur", "pid", "tid"} <= outer.keys()


def test_inner_spans_lie_within_the_outer_one(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    record(trace, "a", "b")

    first, second, outer = spans_of(trace)
    # Times are rounded to nanoseconds.
    assert outer["ts"] <= first["ts"]
    assert first["ts"] + first["dur"] <= second["ts"] + 0.002
    assert second["ts"] + second["dur"] <= outer["ts"] + outer["dur"] + 0.002


def test_own_time_leaves_out_what_ran_inside(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    record(trace, "a", "a")

    inner, outer = trace.totals()
    assert (inner.num_calls, outer.num_calls) == (2, 1)
    assert outer.own_seconds == pytest.approx(outer.seconds - inner.seconds)


def test_a_span_that_fails_is_recorded_and_the_next_nests_as_before(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    with pytest.raises(ZeroDivisionError):
        trace.run(divmod, 1, 0, name="fails", category="c")
    record(trace)

    failed, outer = trace.totals()
    assert failed.name == "fails"
    assert outer.own_seconds == outer.seconds


def test_beyond_the_cap_only_totals_go_on_and_the_file_says_so(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json", max_events=3)
    record(trace, *"abcde")

    assert len(spans_of(trace)) == trace.num_dropped == 3
    assert len(trace.totals()) == 6
    about = json.loads(trace.path.read_text(encoding="utf-8"))["otherData"]
    assert about == {"dropped_events": 3, "note": "only the first 3 spans are shown"}


def test_a_trace_without_spans_is_a_valid_file(tmp_path: Path) -> None:
    assert spans_of(Trace(tmp_path / "t.json")) == []


def test_writing_leaves_no_second_file(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json")
    trace.write()
    trace.write()

    assert list(tmp_path.iterdir()) == [tmp_path / "t.json"]


@pytest.mark.parametrize("name", ["nowhere/t.json", "."])
def test_a_file_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"profile '.*' cannot be written: .*; give a file"):
        check_writable(f"{tmp_path}/{name}")
