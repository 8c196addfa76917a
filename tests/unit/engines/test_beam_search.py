"""Beam search in the engine: its results, its ends and faults, what it shares and what it computes twice."""

import time

import pytest
import torch
from torch import Tensor

from fakes import (
    EOS_ID,
    FailingWrapper,
    ScriptedWrapper,
    assert_nothing_is_left,
    make_llm,
    make_model,
    make_scripted_engine,
)
from kilotron.engines.request_timeline import RequestTimeline
from kilotron.errors import (
    DeadlineExceededError,
    KilotronError,
    NumericalError,
    RequestNeverFitsError,
    SamplingParamsError,
    StepFailedError,
)
from kilotron.inference_request import Status
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.capacity import most_generated

BEAMS = SamplingParams(beam_width=3, num_return_gen=3, max_tokens=5)
GREEDY = SamplingParams(temperature=0.0, max_tokens=5)


class NaNWrapper(ScriptedWrapper):
    """Loses its mind after a "?"."""

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        logits = super().run_one_forward_step(batch)
        logits[batch.token_ids[batch.logits_index] == ord("?")] = torch.nan
        return logits


class ForkingWrapper(NaNWrapper):
    """After an "a", "b" and "?" are the likeliest."""

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        logits = super().run_one_forward_step(batch)
        logits[batch.token_ids[batch.logits_index] == ord("a"), ord("?")] = 4.5
        return logits


def test_results_are_the_best_beams_and_the_request_shows_the_best_one() -> None:
    engine = make_scripted_engine()
    request = engine.generate(["wx"], SamplingParams(beam_width=3, num_return_gen=2, max_tokens=9, length_penalty=0.0))[
        0
    ]
    assert (request.status, request.finish_reason, request.generated_text) == (Status.COMPLETED, "stop", "yz")
    best, second = request.beams
    assert (best.token_ids, best.text, best.finish_reason) == ([*b"yz", EOS_ID], "yz", "stop")
    assert best.score == best.cumulative_log_prob > second.score
    assert_nothing_is_left(engine)


def test_end_text_is_kept_when_asked() -> None:
    params = SamplingParams(beam_width=2, max_tokens=9, stop_token_ids=[ord("z")], detokenize_stop_sequence=True)
    request = make_scripted_engine().generate(["wx"], params)[0]
    assert (request.beams[0].text, request.stop_reason) == ("yz", ord("z"))


def test_nan_in_one_beam_fails_its_request_alone() -> None:
    engine = make_scripted_engine(ForkingWrapper())
    requests = engine.generate(["_a", "_a", "_c"], [BEAMS, GREEDY, BEAMS])
    assert [request.finish_reason for request in requests] == ["error", "length", "length"]
    assert isinstance(requests[0].error, NumericalError)
    assert requests[1].generated_text == "bcdef"
    assert_nothing_is_left(engine)


def test_a_step_that_fails_with_one_beam_fails_its_request_alone() -> None:
    engine = make_scripted_engine(FailingWrapper(poison=ord("e")))
    requests = engine.generate(["_c", "_k", "_l"], [BEAMS, BEAMS, GREEDY])
    assert isinstance(requests[0].error, StepFailedError)
    assert [request.finish_reason for request in requests] == ["error", "length", "length"]
    assert requests[1].beams[0].text == "lmnop"
    assert_nothing_is_left(engine)


def test_an_aborted_search_keeps_what_it_has() -> None:
    engine = make_scripted_engine()
    request = engine.add_request("abc", BEAMS)
    for _ in range(3):
        engine.step()
    engine.abort(request.request_id)
    assert (request.status, request.finish_reason, request.generated_text) == (Status.CANCELLED, "abort", "def")
    assert [beam.finish_reason for beam in request.beams] == ["abort"] * 3
    assert_nothing_is_left(engine)


def test_a_search_ends_at_its_deadline_and_when_the_engine_closes() -> None:
    engine = make_scripted_engine()
    late = engine.add_request(engine.intake.build("abc", BEAMS, timeout_s=0.001))
    other = engine.add_request("abc", BEAMS)
    engine.step()
    time.sleep(0.002)
    engine.step()
    assert isinstance(late.error, DeadlineExceededError)
    engine.close()
    assert other.finish_reason == "abort"
    assert_nothing_is_left(engine)


def test_only_forbidden_tokens_are_an_error() -> None:
    engine = make_scripted_engine()
    params = SamplingParams(beam_width=2, max_tokens=5, allowed_token_ids=[EOS_ID], min_tokens=3)
    request = engine.generate(["abc"], params)[0]
    assert isinstance(request.error, SamplingParamsError)
    assert_nothing_is_left(engine)


def test_few_allowed_tokens_are_enough() -> None:
    params = SamplingParams(beam_width=4, num_return_gen=4, max_tokens=3, allowed_token_ids=[65, 66])
    request = make_scripted_engine().generate(["abc"], params)[0]
    assert len({tuple(beam.token_ids) for beam in request.beams}) == 4
    assert {token for beam in request.beams for token in beam.token_ids} == {65, 66}


def test_a_search_that_can_never_run_is_refused_at_once() -> None:
    engine = make_scripted_engine(max_requests=4, num_blocks=9)
    with pytest.raises(RequestNeverFitsError, match="max_requests=4"):
        engine.add_request("abc", SamplingParams(beam_width=5, max_tokens=2))
    with pytest.raises(RequestNeverFitsError, match=r"need 12 KV blocks .* for 4 beams"):
        engine.add_request("abc", SamplingParams(beam_width=4, max_tokens=16))
    assert engine.generate(["abc"], SamplingParams(beam_width=4, max_tokens=12))[0].finish_reason == "length"


@pytest.mark.parametrize(("num_prompt", "width"), [(1, 1), (5, 3), (8, 2), (17, 4), (31, 5)])
def test_the_most_that_fits_is_exactly_what_is_admitted(num_prompt: int, width: int) -> None:
    engine = make_scripted_engine(num_blocks=33, max_sequence_length=512)
    most = most_generated(num_prompt, width, 8, 33)
    engine.build_all([[5] * num_prompt], SamplingParams(beam_width=width, max_tokens=most))
    with pytest.raises(RequestNeverFitsError):
        engine.build_all([[5] * num_prompt], SamplingParams(beam_width=width, max_tokens=most + 1))


def test_prompt_log_probs_come_with_it() -> None:
    with make_llm() as llm:
        params = SamplingParams(beam_width=3, max_tokens=4, return_log_probs=True)
        request = llm.generate(["hello world, here I am"], params)[0]
        plain = llm.generate(["hello world, here I am"], SamplingParams(max_tokens=1, return_log_probs=True))[0]
    assert request.prompt_log_probs == plain.prompt_log_probs
    assert len(request.generated_log_probs or ()) == 4


def test_the_prompt_is_computed_once_and_its_blocks_are_shared() -> None:
    engine = make_scripted_engine()
    engine.add_request([5] * 32, SamplingParams(beam_width=8, max_tokens=8))
    for _ in range(8):
        engine.step()
        tables = [item.block_ids[:4] for item in engine.scheduler.running if item.block_ids]
        assert all(table == tables[0] for table in tables)
        assert engine.scheduler.allocator.num_owned <= 4 + 8


def test_no_fork_computes_more_than_a_block_again() -> None:
    with make_llm(make_model()) as llm:
        engine = llm.engine
        engine.add_request(list(range(20)), SamplingParams(beam_width=4, max_tokens=30, ignore_eos=True))
        engine.step()
        while engine.has_unfinished_requests:
            wanted = [item.num_wanted for item in engine.scheduler.running]
            assert all(0 <= count <= 8 for count in wanted)
            assert min(wanted) <= 1
            engine.step()


def test_computed_beams_are_found_in_the_prefix_cache() -> None:
    with make_llm() as llm:
        params = SamplingParams(beam_width=4, max_tokens=30, ignore_eos=True)
        best = llm.generate([list(range(20))], params)[0]
        again = llm.generate([list(range(20)) + best.generated_tokens], SamplingParams(max_tokens=1))[0]
        assert again.num_cached_tokens == 48


def test_the_timeline_tells_of_one_request() -> None:
    engine = make_scripted_engine()
    engine.timeline = RequestTimeline()
    request = engine.generate(["abc"], BEAMS)[0]
    events = [event["event"] for event in engine.timeline.read(request.request_id) or ()]
    assert events == ["queued", "admitted", "prefill", "first token", "beams", "tokens", "tokens", "finished"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "num_return_gen"),
        ({"streaming": True}, "cannot stream"),
        ({"stop_words": ["x"]}, "stop_token_ids"),
        ({"return_log_probs": True, "top_n_logprobs": 2}, "top_n_logprobs=2"),
        ({"num_return_gen": 5}, "num_return_gen=5 exceeds beam_width=4"),
        ({"num_beam_groups": 3}, "does not divide"),
        ({"diversity_penalty": 1.0}, "num_beam_groups"),
        ({"early_stopping": "always"}, "early_stopping"),
        ({"early_stopping": 1}, "early_stopping"),
        ({"beam_width": 65}, "beam_width"),
        ({"length_penalty": "long"}, "length_penalty"),
        ({"num_tokens_to_generate": 0}, "num_tokens_to_generate is 0"),
        ({"stop_token_ids": range(17)}, "at most 16"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_when_it_is_asked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(KilotronError, match=message):
        SamplingParams.from_dict({"beam_width": 4} | fields)


def test_a_stream_of_beams_is_refused() -> None:
    with pytest.raises(SamplingParamsError, match="cannot stream"):
        next(make_scripted_engine().generate_stream("abc", BEAMS))
