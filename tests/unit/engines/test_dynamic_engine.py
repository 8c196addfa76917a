"""The life of requests in an engine: every one of them ends exactly once, and takes nobody with it."""

import time
from typing import Any

import pytest
from torch import Tensor

from fakes import FailingWrapper, ScriptedWrapper, assert_nothing_is_left, make_scripted_engine
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.errors import (
    EngineClosedError,
    QueueFullError,
    RequestAbortedError,
    RequestNotFoundError,
    StepFailedError,
)
from kilotron.inference_request import InferenceRequest, Status
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=4)


def run_out(engine: DynamicInferenceEngine) -> list[InferenceRequest]:
    ended = []
    while engine.has_unfinished_requests:
        ended += engine.step()
    return ended


class Recorder:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.items: list[StreamItem] = []

    def __call__(self, _request: InferenceRequest, item: StreamItem) -> None:
        self.items.append(item)
        if item.finish_reason is not None:
            self.reasons.append(item.finish_reason)


def test_requests_come_back_in_the_order_of_their_prompts() -> None:
    texts = [r.generated_text for r in make_scripted_engine().generate(["a", "bcd", "k"], GREEDY)]
    assert texts == ["bcde", "efgh", "lmno"]


def test_no_prompts_give_no_requests() -> None:
    assert make_scripted_engine().generate([], GREEDY) == []


def test_requests_join_while_others_run() -> None:
    engine = make_scripted_engine()
    first = engine.add_request("a", GREEDY)
    engine.step()
    second = engine.add_request("f", GREEDY)
    assert [request.generated_text for request in run_out(engine)] == ["bcde", "ghij"]
    assert first.status == second.status == Status.COMPLETED


def test_status_follows_the_life_of_a_request() -> None:
    engine = make_scripted_engine(max_tokens=4)
    request = engine.add_request("0123456", GREEDY)
    seen = [request.status]
    while not request.is_finished:
        engine.step()
        seen.append(request.status)
    generating, prefilling = Status.ACTIVE_AND_GENERATING_TOKENS, Status.ACTIVE_BUT_NOT_GENERATING_TOKENS
    assert seen == [Status.WAITING_IN_QUEUE, prefilling, *[generating] * 3, Status.COMPLETED]


def test_timings_are_in_order() -> None:
    timings = make_scripted_engine().generate(["a"], GREEDY)[0].timings
    marks = [timings.arrival, timings.admitted, timings.first_token, timings.finished]
    assert None not in marks
    assert marks == sorted(marks)


def test_an_aborted_request_keeps_what_it_has_and_returns_its_blocks() -> None:
    engine = make_scripted_engine()
    request = engine.add_request("a", GREEDY)
    engine.step()
    engine.abort(request.request_id)
    assert (request.generated_text, request.finish_reason, request.status) == ("b", "abort", Status.CANCELLED)
    assert isinstance(request.error, RequestAbortedError)
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("steps_before", range(6))
def test_aborting_in_any_state_leaves_nothing_behind(steps_before: int) -> None:
    engine = make_scripted_engine(max_tokens=4)
    victim, other = engine.add_request("0123456789", GREEDY), engine.add_request("a", GREEDY)
    for _ in range(steps_before):
        engine.step()
    engine.abort(victim.request_id)
    run_out(engine)
    assert other.generated_text == "bcde"
    assert_nothing_is_left(engine)


def test_aborting_twice_or_a_stranger_says_so() -> None:
    engine = make_scripted_engine()
    request = engine.add_request("a", GREEDY)
    engine.abort(request.request_id)
    for request_id in (request.request_id, 12345):
        with pytest.raises(RequestNotFoundError, match="not running or waiting"):
            engine.abort(request_id)


def test_a_request_past_its_deadline_is_cancelled_and_others_go_on() -> None:
    engine = make_scripted_engine()
    late = engine.add_request(engine.intake.build("a", GREEDY, timeout_s=0.001))
    other = engine.add_request("f", GREEDY)
    time.sleep(0.002)
    run_out(engine)
    assert (late.finish_reason, late.status, other.finish_reason) == ("deadline", Status.CANCELLED, "length")
    assert isinstance(late.error, RequestAbortedError)
    assert_nothing_is_left(engine)


def test_a_running_request_meets_its_deadline_too() -> None:
    engine = make_scripted_engine()
    request = engine.add_request(engine.intake.build("a", GREEDY, timeout_s=0.3))
    engine.step()
    time.sleep(0.35)
    engine.step()
    assert (request.generated_text, request.finish_reason) == ("b", "deadline")


def test_a_distant_deadline_changes_nothing() -> None:
    engine = make_scripted_engine()
    request = engine.add_request(engine.intake.build("a", GREEDY, timeout_s=1000))
    run_out(engine)
    assert request.finish_reason == "length"


def test_a_request_that_makes_a_step_fail_fails_alone() -> None:
    engine = make_scripted_engine(FailingWrapper(), max_requests=2)
    good, bad = engine.add_request("a", GREEDY), engine.add_request("!", GREEDY)
    waiting = engine.add_request("f", GREEDY)
    run_out(engine)
    assert isinstance(bad.error, StepFailedError)
    assert bad.status == Status.FAILED
    assert "the device is on fire" in str(bad.error)
    assert [request.generated_text for request in (good, waiting)] == ["bcde", "ghij"]
    assert_nothing_is_left(engine)


class BurningWrapper(ScriptedWrapper):
    """Fails until it is repaired."""

    is_burning = True

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        if self.is_burning:
            raise RuntimeError("the device is on fire")
        return super().run_one_forward_step(batch)


def test_a_model_that_fails_for_everybody_fails_the_requests_that_ran_and_no_others() -> None:
    wrapper = BurningWrapper()
    engine = make_scripted_engine(wrapper, max_requests=2)
    running, waiting = [engine.add_request(letter, GREEDY) for letter in "ab"], engine.add_request("f", GREEDY)
    assert engine.step() == running
    wrapper.is_burning = False
    run_out(engine)
    assert [request.finish_reason for request in running] == ["error", "error"]
    assert waiting.generated_text == "ghij"
    assert_nothing_is_left(engine)


def test_generate_returns_failed_requests_with_their_error() -> None:
    engine = make_scripted_engine(FailingWrapper())
    assert engine.generate(["!"], GREEDY)[0].error.__cause__ is engine.controller.inference_wrapped_model.error
    assert engine.generate(["a"], GREEDY)[0].generated_text == "bcde"


def test_an_interrupt_in_the_model_aborts_what_is_left() -> None:
    engine = make_scripted_engine(FailingWrapper(error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        engine.generate(["a", "!"], GREEDY)
    assert_nothing_is_left(engine)
    assert engine.generate(["a"], GREEDY)[0].generated_text == "bcde"


def test_an_interrupt_between_steps_aborts_what_is_left() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    engine = make_scripted_engine()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(["a", "b"], GREEDY, on_step=interrupt)
    assert_nothing_is_left(engine)


def test_n_continuations_are_one_request_with_choices() -> None:
    engine = make_scripted_engine()
    params = SamplingParams(n=4, num_tokens_to_generate=6, seed=3)
    request = engine.generate(["abc"], params)[0]
    assert [choice.choice_index for choice in request.choices] == [0, 1, 2, 3]
    assert request.choices[0] is request
    assert len({tuple(choice.generated_tokens) for choice in request.choices}) > 1
    assert_nothing_is_left(engine)


def test_the_choices_are_reproducible_and_the_first_is_what_n_1_gives() -> None:
    def tokens(n: int) -> list[list[int]]:
        request = make_scripted_engine().generate(["abc"], SamplingParams(n=n, num_tokens_to_generate=6, seed=3))[0]
        return [choice.generated_tokens for choice in request.choices]

    assert tokens(4) == tokens(4)
    assert tokens(4)[:1] == tokens(1)
    assert tokens(4)[:2] == tokens(2)


def test_aborting_one_choice_leaves_the_others() -> None:
    engine = make_scripted_engine()
    request = engine.add_request("a", SamplingParams(n=3, num_tokens_to_generate=4, temperature=0.0))
    engine.step()
    engine.abort(request.choices[1].request_id)
    run_out(engine)
    assert [choice.finish_reason for choice in request.choices] == ["length", "abort", "length"]


def test_closing_ends_every_request_once_also_choices_whose_first_has_ended() -> None:
    engine, recorder = make_scripted_engine(), Recorder()
    request = engine.add_request("a", SamplingParams(n=2, num_tokens_to_generate=9), listener=recorder)
    engine.add_request("f", GREEDY, listener=recorder)
    engine.step()
    engine.abort(request.request_id)
    engine.close("the lights went out")
    assert recorder.reasons == ["abort"] * 3
    assert isinstance(request.choices[1].error, EngineClosedError)
    assert "the lights went out" in str(request.choices[1].error)
    assert not engine.has_unfinished_requests


def test_a_closed_engine_says_why() -> None:
    engine = make_scripted_engine()
    engine.close("the lights went out")
    engine.close()
    calls: list[Any] = [lambda: engine.generate(["a"]), lambda: engine.add_request("a"), engine.step]
    for call in (*calls, lambda: next(engine.generate_stream("a"))):
        with pytest.raises(EngineClosedError, match="the lights went out"):
            call()


def test_closing_gives_the_kv_cache_back() -> None:
    engine = make_scripted_engine()
    engine.close()
    with pytest.raises(EngineClosedError):
        _ = engine.context.storage.layers


def test_a_full_queue_refuses_and_the_rest_is_aborted_with_the_call() -> None:
    engine = make_scripted_engine(max_waiting_requests=2)
    with pytest.raises(QueueFullError, match="max_waiting_requests"):
        engine.generate(["a", "b", "c"], GREEDY)
    assert_nothing_is_left(engine)


def test_a_listener_that_fails_loses_its_request_and_hurts_no_other() -> None:
    def fail(_request: InferenceRequest, _item: StreamItem) -> None:
        raise ZeroDivisionError

    engine, params = make_scripted_engine(), SamplingParams(temperature=0.0, num_tokens_to_generate=4, streaming=True)
    deaf, other = engine.add_request("a", params, listener=fail), engine.add_request("f", params)
    run_out(engine)
    assert (deaf.finish_reason, other.generated_text) == ("abort", "ghij")
    assert_nothing_is_left(engine)


def test_a_listener_that_fails_at_the_end_is_only_logged() -> None:
    def fail(_request: InferenceRequest, item: StreamItem) -> None:
        if item.finish_reason:
            raise ZeroDivisionError

    engine = make_scripted_engine()
    request = engine.add_request("a", GREEDY, listener=fail)
    run_out(engine)
    assert request.finish_reason == "length"
    assert_nothing_is_left(engine)


def test_a_listener_may_abort_others_even_those_ending_in_the_same_step() -> None:
    engine = make_scripted_engine()
    others: list[InferenceRequest] = []

    def abort_others(_request: InferenceRequest, item: StreamItem) -> None:
        for other in others if item.finish_reason else ():
            with pytest.raises(RequestNotFoundError):
                engine.abort(other.request_id)

    engine.add_request("a", GREEDY, listener=abort_others)
    others.append(engine.add_request("f", GREEDY))
    run_out(engine)
    assert others[0].generated_text == "ghij"


def test_a_request_that_needs_no_model_ends_at_once() -> None:
    engine, recorder = make_scripted_engine(), Recorder()
    request = engine.add_request("a", SamplingParams(num_tokens_to_generate=0), listener=recorder)
    assert (request.finish_reason, request.generated_tokens, recorder.reasons) == ("length", [], ["length"])
    assert engine.controller.inference_wrapped_model.num_steps == 0


def test_a_preempted_request_gives_the_same_text() -> None:
    engine = make_scripted_engine(num_blocks=6)
    requests = engine.generate(["0123456789", "abcdefg", "ABCDEFGHI"], SamplingParams(temperature=0.0, max_tokens=14))
    assert engine.scheduler.num_preemptions > 0
    assert sum(request.num_preemptions for request in requests) == engine.scheduler.num_preemptions
    assert [request.generated_text[:6] for request in requests] == [":;<=>?", "hijklm", "JKLMNO"]
    assert_nothing_is_left(engine)


def test_without_chunked_prefill_a_preempted_request_still_comes_back() -> None:
    engine = make_scripted_engine(num_blocks=6, max_tokens=12, enable_chunked_prefill=False)
    requests = engine.generate(["0123456789", "abcdefg", "ABCDEFGHI"], SamplingParams(temperature=0.0, max_tokens=14))
    assert engine.scheduler.num_preemptions > 0
    assert [request.generated_length for request in requests] == [14] * 3


def test_counters_count() -> None:
    engine = make_scripted_engine()
    engine.generate(["a", "b"], GREEDY)
    assert (engine.num_tokens_generated, engine.num_requests_finished, engine.num_unfinished_requests) == (8, 2, 0)


def test_a_tokenizer_that_fails_at_the_end_fails_only_that_request() -> None:
    from kilotron.tokenization import ByteTokenizer

    class Stutterer(ByteTokenizer):
        def create_detokenizer(self, prompt_ids: Any, **options: Any) -> Any:
            if prompt_ids[-1] == ord("!"):
                raise ZeroDivisionError("cannot read that")
            return super().create_detokenizer(prompt_ids, **options)

    engine = make_scripted_engine(ScriptedWrapper(), Stutterer(), max_requests=1)
    bad, good = engine.generate(["!", "a"], GREEDY)
    assert isinstance(bad.error, StepFailedError)
    assert good.generated_text == "bcde"
    assert_nothing_is_left(engine)


def test_prompt_tokens_are_left_out_of_the_result_when_not_wanted() -> None:
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=2, return_prompt_tokens=False, n=2)
    engine = make_scripted_engine()
    request = engine.generate([[97, 98]], params)[0]
    assert [choice.prompt_tokens for choice in request.choices] == [[], []]
    assert [choice.generated_length for choice in request.choices] == [2, 2]
    assert_nothing_is_left(engine)
