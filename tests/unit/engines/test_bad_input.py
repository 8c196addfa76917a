"""Bad requests are refused with the documented class and a message that names value and remedy; nothing else stops."""

from typing import Any

import pytest

from fakes import assert_nothing_is_left, make_scripted_engine
from kilotron.errors import (
    EmptyPromptError,
    InvalidRequestError,
    PromptTooLongError,
    RequestNeverFitsError,
    SamplingParamsError,
    TokenOutOfRangeError,
)
from kilotron.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=4)

BAD_PROMPTS: list[tuple[Any, type[Exception], str]] = [
    ([], EmptyPromptError, "at least one token"),
    ([259], TokenOutOfRangeError, r"prompt token id 259 is outside the vocabulary \(0 to 258\)"),
    ([5, -1], TokenOutOfRangeError, "prompt token id -1"),
    ([10**30], TokenOutOfRangeError, "outside the vocabulary"),
    ([1.5], InvalidRequestError, "whole numbers, not 1.5"),
    ([True], InvalidRequestError, "whole numbers, not True"),
    (["a", 1], InvalidRequestError, "whole numbers, not 'a'"),
    ([[1, 2], [3]], InvalidRequestError, "whole numbers"),
    (None, InvalidRequestError, "a text or a list of token ids, not NoneType"),
    (17, InvalidRequestError, "not int"),
    (b"bytes", InvalidRequestError, "not bytes"),
    ({1: 2}, InvalidRequestError, "not dict"),
    ([7] * 65, PromptTooLongError, "65 tokens, but the context length is 64"),
    ([7] * 61, PromptTooLongError, "61 tokens and 4 more .* at most 3 tokens"),
]

BAD_PARAMS: list[tuple[SamplingParams, type[Exception], str]] = [
    (SamplingParams(num_tokens_total=2), PromptTooLongError, "3 tokens, more than num_tokens_total=2"),
    (SamplingParams(num_tokens_to_generate=62), PromptTooLongError, "at most 61"),
    (SamplingParams(stop_token_ids=[259]), TokenOutOfRangeError, "stop_token_ids entry 259"),
    (SamplingParams(allowed_token_ids=[3, 400]), TokenOutOfRangeError, "allowed_token_ids entry 400"),
    (SamplingParams(logit_bias={300: 1.0}), TokenOutOfRangeError, "logit_bias entry 300"),
    (SamplingParams(termination_id=300), TokenOutOfRangeError, "termination_id 300"),
]

WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature must be a number in"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n must be"),
    ({"num_tokens_to_generate": -1}, "num_tokens_to_generate"),
    ({"num_tokens_to_generate": 3, "num_tokens_total": 9}, "exclude each other"),
    ({"min_tokens": 5, "num_tokens_to_generate": 4}, "min_tokens=5 exceeds"),
    ({"stop_words": [""]}, "stop_words"),
    ({"stop_words": [3]}, "stop_words"),
    ({"logit_bias": {1: 101}}, r"logit_bias\[1\]"),
    ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
    ({"top_n_logprobs": 3}, "needs return_log_probs"),
    ({"seed": 1.5}, "seed"),
    ({"streaming_interval": 0}, "streaming_interval"),
    ({"ignore_eos": 1}, "ignore_eos must be True or False"),
]


@pytest.mark.parametrize(("prompt", "error", "message"), BAD_PROMPTS)
def test_a_bad_prompt_is_refused_while_a_running_batch_goes_on(
    prompt: Any, error: type[Exception], message: str
) -> None:
    engine = make_scripted_engine()
    running = engine.add_request("a", GREEDY)
    engine.step()
    with pytest.raises(error, match=message):
        engine.add_request(prompt, GREEDY)
    while engine.has_unfinished_requests:
        engine.step()
    assert running.generated_text == "bcde"
    assert_nothing_is_left(engine)


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS)
def test_params_that_do_not_suit_the_model_or_prompt_are_refused(
    params: SamplingParams, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_scripted_engine().generate([[1, 2, 3]], params)


@pytest.mark.parametrize(("fields", "message"), WRONG_FIELDS)
def test_a_wrong_field_is_refused_at_construction_and_when_assigned_later(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingParamsError, match=message):
        SamplingParams(**fields)
    params = SamplingParams()
    for name, value in fields.items():
        setattr(params, name, value)
    with pytest.raises(SamplingParamsError, match=message):
        make_scripted_engine().generate(["a"], params)


@pytest.mark.parametrize(("prompt", "error", "message"), BAD_PROMPTS)
def test_one_bad_prompt_of_many_starts_nothing(prompt: Any, error: type[Exception], message: str) -> None:
    engine = make_scripted_engine()
    with pytest.raises(error, match=message):
        engine.generate(["a", "b", prompt], GREEDY)
    assert engine.scheduler.step == engine.num_requests_finished == 0
    assert_nothing_is_left(engine)


def test_the_number_of_params_must_be_one_or_that_of_prompts() -> None:
    with pytest.raises(SamplingParamsError, match="2 sampling params for 3 prompts"):
        make_scripted_engine().generate(["a", "b", "c"], [GREEDY, GREEDY])


def test_something_else_than_params_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="must be SamplingParams, not dict"):
        make_scripted_engine().add_request("a", {"temperature": 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), "1", True])
def test_a_timeout_must_be_a_number_above_zero(timeout_s: Any) -> None:
    with pytest.raises(InvalidRequestError, match="timeout_s must be a number above 0"):
        make_scripted_engine().intake.build("a", timeout_s=timeout_s)


@pytest.mark.parametrize("cache_salt", [None, 5, b"tenant"])
def test_a_salt_that_is_no_text_is_refused_before_anything_starts(cache_salt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="cache_salt must be a text"):
        make_scripted_engine().intake.build("a", cache_salt=cache_salt)


@pytest.mark.parametrize("num_steps", [0, 1, 9])
def test_a_request_is_taken_in_only_once_waiting_running_or_finished(num_steps: int) -> None:
    engine = make_scripted_engine()
    request = engine.add_request("a", GREEDY)
    for _ in range(num_steps):
        engine.step()
    with pytest.raises(InvalidRequestError, match="was added before; build a new one"):
        engine.add_request(request)
    while engine.has_unfinished_requests:
        engine.step()
    assert request.generated_text == "bcde"
    assert_nothing_is_left(engine)


def test_a_request_larger_than_the_whole_cache_is_refused() -> None:
    engine = make_scripted_engine(num_blocks=4)
    with pytest.raises(RequestNeverFitsError, match=r"4 KV blocks .* but the cache has 3; ask for fewer tokens"):
        engine.generate([[1] * 20], SamplingParams(num_tokens_to_generate=6))
    assert engine.generate([[1] * 20], SamplingParams(num_tokens_to_generate=5))[0].generated_length == 5


def test_a_prompt_longer_than_a_step_is_refused_without_chunked_prefill() -> None:
    engine = make_scripted_engine(max_tokens=8, enable_chunked_prefill=False)
    with pytest.raises(RequestNeverFitsError, match="more than max_tokens=8; enable chunked prefill"):
        engine.generate([[1] * 9], GREEDY)


def test_a_prompt_of_the_whole_context_can_be_scored_but_not_continued() -> None:
    engine = make_scripted_engine()
    with pytest.raises(PromptTooLongError, match="fills the context length of 64"):
        engine.generate([[1] * 64])
    scored = engine.generate([[1] * 64], SamplingParams(return_log_probs=True))[0]
    assert (scored.generated_length, len(scored.prompt_log_probs or [])) == (0, 63)


def test_changing_params_after_the_call_does_not_reach_the_request() -> None:
    engine, params = make_scripted_engine(), SamplingParams(temperature=0.0, num_tokens_to_generate=4)
    request = engine.add_request("a", params)
    params.num_tokens_to_generate = 1
    while engine.has_unfinished_requests:
        engine.step()
    assert request.generated_text == "bcde"
