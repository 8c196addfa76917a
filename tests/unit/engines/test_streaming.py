"""Streams: their parts make the whole, and leaving one aborts it."""

from typing import Any

import pytest

from fakes import FailingWrapper, ScriptedWrapper, assert_nothing_is_left, make_scripted_engine, write_out
from kilotron.errors import EmptyPromptError, RequestAbortedError, SamplingParamsError, StepFailedError
from kilotron.sampling_params import SamplingParams

TEXT = "Grüße — 你好, wörld! 👋 done"


def params_of(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "return_log_probs": True, "top_n_logprobs": 2} | fields)


def make_engine(text: str = TEXT) -> Any:
    return make_scripted_engine(ScriptedWrapper(write_out(text, prompt_length=1)), max_sequence_length=256)


@pytest.mark.parametrize("interval", [1, 3, 7, 1000])
@pytest.mark.parametrize("stop", [None, "rl", "你好", "never"])
def test_a_streams_parts_make_the_whole(interval: int, stop: str | None) -> None:
    whole = make_engine().generate([[65]], params_of(stop=stop))[0]
    items = list(make_engine().generate_stream([65], params_of(stop=stop, streaming_interval=interval)))
    assert "".join(item.text for item in items) == whole.generated_text
    assert [token for item in items for token in item.token_ids] == whole.generated_tokens
    assert [value for item in items for value in item.log_probs or ()] == whole.generated_log_probs
    assert [top for item in items for top in item.top_n_ids or ()] == whole.generated_top_n_ids
    assert [item.finish_reason for item in items if item.finish_reason] == [items[-1].finish_reason] == ["stop"]


def test_items_come_every_so_many_tokens() -> None:
    params = params_of(streaming_interval=3, max_tokens=8)
    assert [len(item.token_ids) for item in make_engine().generate_stream([65], params)] == [3, 3, 2]


def test_no_item_holds_half_a_character_or_part_of_the_stop_text() -> None:
    for stop in ("好,", "wör", None):
        whole = make_engine().generate([[65]], params_of(stop=stop))[0].generated_text
        seen = ""
        for item in make_engine().generate_stream([65], params_of(stop=stop)):
            seen += item.text
            assert whole.startswith(seen)


def test_items_come_while_the_request_runs() -> None:
    engine = make_engine()
    stream = engine.generate_stream([65], params_of())
    assert next(stream).token_ids == (ord("G"),)
    assert engine.scheduler.step == 1
    stream.close()


def test_leaving_early_aborts() -> None:
    engine = make_engine()
    for _ in engine.generate_stream([65], params_of()):
        break
    assert_nothing_is_left(engine)


def test_a_stream_runs_beside_other_requests() -> None:
    engine = make_scripted_engine()
    other = engine.add_request("f", params_of(max_tokens=9))
    text = "".join(item.text for item in engine.generate_stream("a", params_of(max_tokens=3)))
    assert (text, other.generated_text, other.generated_length) == ("bcd", "", 3)


def test_a_streams_request_that_fails_raises_its_error() -> None:
    engine = make_scripted_engine(FailingWrapper(ord("d")))
    seen = []
    with pytest.raises(StepFailedError):
        seen += [item.text for item in engine.generate_stream("a", params_of())]
    assert_nothing_is_left(engine)


def test_a_stream_that_somebody_aborts_raises() -> None:
    engine = make_scripted_engine()
    stream = engine.generate_stream("a", params_of())
    next(stream)
    engine.abort(next(iter(engine._requests)))
    with pytest.raises(RequestAbortedError):
        list(stream)


def test_a_stream_has_one_continuation() -> None:
    with pytest.raises(SamplingParamsError, match="n=2"):
        next(make_scripted_engine().generate_stream("a", SamplingParams(n=2)))


def test_a_stream_of_nothing_ends_at_once() -> None:
    items = list(make_scripted_engine().generate_stream("a", SamplingParams(max_tokens=0)))
    assert [(item.text, item.token_ids, item.finish_reason) for item in items] == [("", (), "length")]


def test_a_streams_bad_prompt_is_refused() -> None:
    with pytest.raises(EmptyPromptError):
        next(make_scripted_engine().generate_stream([]))


def test_streaming_does_not_change_the_callers_params() -> None:
    params = params_of(max_tokens=2)
    list(make_scripted_engine().generate_stream("a", params))
    assert params.streaming is False
