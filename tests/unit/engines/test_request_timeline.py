"""What a timeline says of a request, and what it costs those that are only generating."""

from typing import Any

from fakes import make_scripted_engine
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.request_timeline import RequestTimeline
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.step_plan import RowPlan, StepPlan


def make_engine(timeline: RequestTimeline | None = None, **limits: Any) -> DynamicInferenceEngine:
    engine = make_scripted_engine(**limits)
    engine.timeline = timeline or RequestTimeline()
    return engine


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, num_tokens_to_generate=num_tokens, ignore_eos=True)


def read(engine: DynamicInferenceEngine, request: InferenceRequest) -> list[dict[str, Any]]:
    assert engine.timeline is not None
    events = engine.timeline.read(request.request_id)
    assert events is not None
    return events


def without_times(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in event.items() if name != "at_s"} for event in events]


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def run_out(engine: DynamicInferenceEngine) -> None:
    while engine.has_unfinished_requests:
        engine.step()


def test_a_timeline_tells_a_request_from_its_arrival_to_its_end() -> None:
    engine = make_engine(max_tokens=8)
    request = engine.add_request([1] * 12, greedy(9))
    run_out(engine)
    events = read(engine, request)
    assert without_times(events) == [
        {"event": "queued", "prompt_tokens": 12},
        {"event": "admitted", "cached_tokens": 0},
        {"event": "prefill", "tokens": 8, "step": 1},
        {"event": "prefill", "tokens": 4, "step": 2},
        {"event": "first token"},
        {"event": "tokens", "tokens": 2},
        {"event": "tokens", "tokens": 4},
        {"event": "tokens", "tokens": 8},
        {"event": "finished", "reason": "length", "tokens": 9},
    ]
    times = [event["at_s"] for event in events]
    assert times == sorted(times)
    assert times[0] == 0


def test_cached_tokens_are_told_at_admission() -> None:
    engine = make_engine()
    engine.generate([[1] * 20], greedy(2))
    request = engine.generate([[1] * 20], greedy(2))[0]
    assert without_times(read(engine, request))[1:3] == [
        {"event": "admitted", "cached_tokens": 16},
        {"event": "prefill", "tokens": 4, "step": 3},
    ]


def test_a_preempted_request_says_why_and_when_it_goes_on() -> None:
    engine = make_engine(num_blocks=6)
    requests = [engine.add_request(text, greedy(14)) for text in ("0123456789", "abcdefg", "ABCDEFGHI")]
    run_out(engine)
    victim = next(request for request in requests if request.num_preemptions)
    events = read(engine, victim)
    assert {"event": "preempted", "reason": "out of blocks"} in without_times(events)
    assert names(events).count("resumed") == names(events).count("preempted") == victim.num_preemptions
    assert (names(events).count("first token"), names(events).count("admitted")) == (1, 1)


def test_suspension_is_told_as_the_reason() -> None:
    engine = make_engine()
    request = engine.add_request("abc", greedy(3))
    engine.step()
    engine.suspend("recompute")
    engine.resume()
    run_out(engine)
    assert names(read(engine, request)) == [
        "queued", "admitted", "prefill", "first token", "preempted", "resumed", "prefill", "tokens",
        "finished",
    ]  # fmt: skip


def test_a_beam_search_is_suspended_once_not_once_per_beam() -> None:
    engine = make_engine()
    request = engine.add_request("abc", SamplingParams(beam_width=3, max_tokens=3))
    engine.step()
    engine.suspend("recompute")
    engine.resume()
    run_out(engine)
    assert [name for name in names(read(engine, request)) if name in ("preempted", "resumed")] == [
        "preempted",
        "resumed",
    ]


def test_a_request_that_ends_early_has_an_end() -> None:
    engine = make_engine()
    aborted, unneeded = engine.add_request("a", greedy(9)), engine.add_request("a", greedy(0))
    engine.abort(aborted.request_id)
    assert names(read(engine, aborted)) == names(read(engine, unneeded)) == ["queued", "finished"]
    assert read(engine, aborted)[-1]["reason"] == "abort"


def test_only_the_newest_requests_are_remembered() -> None:
    engine = make_engine(RequestTimeline(max_requests=3))
    requests = engine.generate(["a", "b", "c", "d"], greedy(5))
    assert engine.timeline is not None
    remembered = [engine.timeline.read(request.request_id) is not None for request in requests]
    assert remembered == [False, True, True, True]


def test_events_of_a_request_are_bounded_and_its_end_is_always_there() -> None:
    engine = make_engine(RequestTimeline(max_events=8), max_tokens=1, num_blocks=65, max_sequence_length=400)
    request = engine.add_request([1] * 300, greedy(60))
    run_out(engine)
    events = without_times(read(engine, request))
    assert len(events) == 9
    assert {"event": "prefill", "tokens": 299, "step": 2, "last_step": 300} in events
    assert events[-2] == {"event": "finished", "reason": "length", "tokens": 60}
    assert events[-1] == {"event": "left out", "events": 3}


def test_what_is_kept_for_the_next_event_goes_when_that_is_due() -> None:
    engine = make_engine()
    engine.generate(["a", "b", "c"], greedy(20))
    engine.generate(["d"], greedy(40))
    timeline = engine.timeline
    assert timeline is not None
    assert (timeline._computing, [request_id for _, request_id in timeline._due]) == ({}, [4])


class UncountedRows(list[RowPlan]):
    """Rows that must not be looked at."""

    def __iter__(self) -> Any:
        raise AssertionError("a step that only generates is not walked through")


def test_a_step_that_only_generates_costs_nothing_per_row() -> None:
    engine = make_engine()
    request = engine.add_request("a", greedy(40))
    for _ in range(6):
        engine.step()
    assert engine.timeline is not None
    engine.timeline.begin_step(StepPlan(7, UncountedRows()), {request.request_id: request}, 0.0)
