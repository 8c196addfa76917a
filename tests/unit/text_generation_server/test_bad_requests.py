"""What a client can get wrong: each mistake is one OpenAI error object with status 400."""

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest

from kilotron.config import ServeConfig
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_server.app import build_app
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.request_admission import Caller, PromptOptions, admit
from serving import Service

# reliability.md 1.2: what Megatron's handler answered with 500, or passed on to the engine.
RAW = {
    "a list": b"[]",
    "a text": b'"a"',
    "a number": b"5",
    "invalid UTF-8": b'{"prompt": "\xff"}',
    "deep nesting": b"[" * 100_000,
    "no body": b"",
    "half a body": b'{"prompt": "a',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "1e400": b'{"prompt": "a", "temperature": 1e400}',
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a key twice": b'{"prompt": "a", "prompt": "b"}',
}
FIELDS: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 0},
    "max_tokens ": {"max_tokens": -5},
    "max_tokens  ": {"max_tokens": 10**12},
    "max_tokens   ": {"max_tokens": 1.5},
    "max_tokens    ": {"max_tokens": "5"},
    "max_tokens     ": {"max_tokens": True},
    "temperature": {"temperature": []},
    "temperature ": {"temperature": -1},
    "temperature  ": {"temperature": 3},
    "temperature   ": {"temperature": "hot"},
    "top_p": {"top_p": 2},
    "top_p ": {"top_p": -1},
    "top_p  ": {"top_p": 0},
    "top_k": {"top_k": -5},
    "top_k ": {"top_k": 10**9},
    "min_p": {"min_p": 1.5},
    "logprobs": {"logprobs": -1},
    "logprobs ": {"logprobs": 10**9},
    "logprobs  ": {"logprobs": 21},
    "prompt_logprobs": {"prompt_logprobs": -1},
    "stop": {"stop": 5},
    "stop ": {"stop": ["x"] * 10_000},
    "stop  ": {"stop": ["a", "b", "c", "d", "e"]},
    "stop[0]": {"stop": [""]},
    "stop[0] ": {"stop": [1]},
    "stop[0]  ": {"stop": ["x" * 257]},
    "n": {"n": 1_000_000},
    "n ": {"n": 0},
    "n  ": {"prompt": ["a"] * 200, "n": 100},
    "best_of": {"n": 1, "best_of": 4},
    "seed": {"seed": 2**64},
    "presence_penalty": {"presence_penalty": 3},
    "frequency_penalty": {"frequency_penalty": -3},
    "repetition_penalty": {"repetition_penalty": 0},
    "repetition_penalty ": {"repetition_penalty": 5e-324},
    "logit_bias": {"logit_bias": {"x": 1}},
    "logit_bias ": {"logit_bias": {str(i): 1 for i in range(1025)}},
    "logit_bias  ": {"logit_bias": {"100000": 1}},
    "stop_token_ids": {"stop_token_ids": [100_000], "min_tokens": 5},
    "stop_token_ids[0]": {"stop_token_ids": [-1]},
    "allowed_token_ids": {"allowed_token_ids": [100_000]},
    "allowed_token_ids ": {"allowed_token_ids": []},
    "min_tokens": {"min_tokens": 10, "max_tokens": 5},
    "timeout": {"timeout": 0},
    "stream": {"stream": "yes"},
    "stream_options": {"stream_options": {"include_usage": True}},
    "echo": {"echo": 1},
    "prompt": {"prompt": 5},
    "prompt ": {"prompt": ""},
    "prompt  ": {"prompt": []},
    "prompt   ": {"prompt": [-1]},
    "prompt    ": {"prompt": [200_000]},
    "prompt     ": {"prompt": [2**70]},
    "prompt      ": {"prompt": ["a"] * 257},
    "prompt[0]": {"prompt": [[]]},
    "prompt[0] ": {"prompt": [True]},
    "prompt[1]": {"prompt": ["a", ""]},
    "prompt[1] ": {"prompt": [[1], [5000]]},
    "prompt[1]  ": {"prompt": [[1], ["a"]]},
    "suffix": {"suffix": "the end"},
    "response_format": {"response_format": {"type": "json_object"}},
    "guided_json": {"guided_json": {}},
    "best_of  ": {"use_beam_search": True},
    "best_of   ": {"use_beam_search": True, "best_of": 65},
    "n     ": {"use_beam_search": True, "best_of": 2, "n": 3},
    "length_penalty": {"length_penalty": 0.5},
    "early_stopping": {"early_stopping": True},
    "early_stopping ": {"use_beam_search": True, "n": 2, "early_stopping": "always"},
    "length_penalty ": {"use_beam_search": True, "n": 2, "length_penalty": 11},
    "stream  ": {"use_beam_search": True, "n": 2, "stream": True},
    "stop     ": {"use_beam_search": True, "n": 2, "stop": "x"},
    "stop_token_ids ": {"use_beam_search": True, "n": 2, "stop_token_ids": list(range(17))},
    "logprobs    ": {"use_beam_search": True, "n": 2, "logprobs": 1},
    "prompt_logprobs   ": {"use_beam_search": True, "n": 2, "prompt_logprobs": 1},
    "max_tokens      ": {"use_beam_search": True, "n": 2, "max_tokens": 0, "echo": True},
    "best_of    ": {"use_beam_search": True, "best_of": 64, "prompt": ["a"] * 20},
    "logprob_token_ids": {"logprob_token_ids": [1]},
}


def check_error(response: Any, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert 0 < len(error["message"]) <= 1024
    assert "Traceback" not in error["message"]
    if param is not None:
        assert error["param"] == param
    return error


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/admin/abort"]
)
@pytest.mark.parametrize("name", RAW)
def test_a_body_that_cannot_be_read_is_a_400(service: Service, path: str, name: str) -> None:
    check_error(service.post(path, content=RAW[name]))


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_field_of_a_completion_is_named(service: Service, name: str) -> None:
    check_error(service.post("/v1/completions", {"prompt": "a", **FIELDS[name]}), name.strip())


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"stream_options"}))
def test_streams_refuse_the_same_before_they_begin(service: Service, name: str) -> None:
    check_error(service.post("/v1/completions", {"prompt": "a", "stream": True, **FIELDS[name]}))


def test_a_missing_prompt_is_missing(service: Service) -> None:
    assert check_error(service.post("/v1/completions", {}), "prompt")["code"] == "missing_parameter"
    assert check_error(service.post("/v1/completions", {"prompt": None}), "prompt")["code"] == "missing_parameter"


def test_null_means_not_given(service: Service) -> None:
    body = {"prompt": "a", "temperature": None, "max_tokens": None, "stop": None, "logit_bias": None, "stream": None}
    assert service.post("/v1/completions", body).status_code == 200


def test_another_model_does_not_exist(service: Service) -> None:
    response = service.post("/v1/completions", {"prompt": "a", "model": "gpt-4"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "kilotron-tiny" in response.json()["error"]["message"]
    assert service.post("/v1/completions", {"prompt": "a", "model": ""}).status_code == 200


def test_an_unknown_field_is_refused_with_the_nearest_one(service: Service) -> None:
    error = check_error(service.post("/v1/completions", {"prompt": "a", "temprature": 1}), "temprature")
    assert "'temperature'" in error["message"]


def test_an_unknown_field_can_be_allowed_with_a_warning(service: Service) -> None:
    body = {"prompt": "a", "max_tokens": 1, "temprature": 1}
    response = service.post("/v1/completions", body, allow_unknown_fields=True)
    assert response.status_code == 200
    assert "temprature" in response.headers["x-kilotron-warning"]


MESSAGES: dict[str, Any] = {
    "messages": [],
    "messages ": "hi",
    "messages  ": [{"role": "user", "content": "a"}] * 2049,
    "messages[0]": ["hi"],
    "messages[0].role": [{"content": "a"}],
    "messages[0].role ": [{"role": "boss", "content": "a"}],
    "messages[0].content": [{"role": "user"}],
    "messages[1].content": [{"role": "user", "content": "a"}, {"role": "user", "content": 5}],
    "messages[0].content[0]": [{"role": "user", "content": ["a"]}],
    "messages[0].content[0].type": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    "messages[0].content[0].text": [{"role": "user", "content": [{"type": "text"}]}],
    "messages[0].content ": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 257}],
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_is_named_by_its_path(service: Service, name: str) -> None:
    check_error(service.post("/v1/chat/completions", {"messages": MESSAGES[name]}), name.strip())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1_000_000}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_what_chat_cannot_do_is_refused_by_name(service: Service, fields: dict[str, Any], param: str) -> None:
    check_error(service.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], **fields}), param)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True},
        {"tool_choice": "auto", "functions": []},
        {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
    ],
)
def test_what_changes_nothing_is_accepted(service: Service, fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **fields}
    assert service.post("/v1/chat/completions", body).status_code == 200


def test_headers_are_checked_too(service: Service) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    for headers in ({"x-request-timeout-ms": "soon"}, {"x-request-timeout-ms": "0"}, {"idempotency-key": "k" * 257}):
        check_error(service.post("/v1/completions", body, headers=headers))


def test_context_errors_name_both_numbers(service: Service) -> None:
    longest = service.facts.max_sequence_length
    cases = [
        {"prompt": [5] * longest},
        {"prompt": [5] * (longest + 1), "max_tokens": 1},
        {"prompt": [5] * 10, "max_tokens": longest},
    ]
    for case in cases:
        error = check_error(service.post("/v1/completions", case))
        assert error["code"] == "context_length_exceeded"
        assert str(longest) in error["message"]
        assert str(len(case["prompt"])) in error["message"]


def test_the_last_place_of_the_context_can_be_used(service: Service) -> None:
    longest = service.facts.max_sequence_length
    response = service.post("/v1/completions", {"prompt": [5] * (longest - 1), "max_tokens": 1})
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 1


def test_the_default_length_shrinks_to_the_room_there_is(service: Service) -> None:
    longest = service.facts.max_sequence_length
    body = {"prompt": [5] * (longest - 3), "ignore_eos": True}
    assert service.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 3


def test_a_prompt_of_megabytes_is_refused_before_it_is_tokenized(service: Service) -> None:
    body = json.dumps({"prompt": "hello world " * 300_000}).encode()

    async def test(http: httpx2.AsyncClient) -> tuple[float, Any]:
        await http.post("/v1/completions", json={"prompt": "a " * 20_000})  # the longest token is counted once
        before = time.perf_counter()
        response = await http.post("/v1/completions", content=body)
        return time.perf_counter() - before, response

    seconds, response = service.run(test)
    assert check_error(response)["code"] == "context_length_exceeded"
    assert seconds < 0.150


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_long_conversations_are_refused_before_they_are_rendered(service: Service, path: str) -> None:
    messages = [{"role": "user", "content": "hello world " * 10_000}] * 3
    assert check_error(service.post(path, {"messages": messages}), "messages")["code"] == "context_length_exceeded"


@pytest.mark.parametrize("is_streaming", [False, True])
def test_fields_that_leave_no_token_to_choose_are_the_clients_mistake(service: Service, is_streaming: bool) -> None:
    fields = {"allowed_token_ids": [7], "stop_token_ids": [7], "min_tokens": 2, "stream": is_streaming}
    response = service.post("/v1/completions", {"prompt": "a", **fields})
    assert response.status_code == 400
    assert "forbid every possible one" in response.json()["error"]["message"]


def test_more_prompts_than_a_key_may_ever_have_under_way_are_no_matter_of_waiting(service: Service) -> None:
    state = build_app(service.client, service.tokenizer, ServeConfig(max_concurrent_per_key=3), None).state
    options = PromptOptions(params=SamplingParams(), default_max_tokens=1, add_special_tokens=True)
    caller = Caller(owner="key", timeout_s=1.0, idempotency_key="")
    assert len(asyncio.run(admit(state, ["a"] * 3, options, caller))) == 3
    with pytest.raises(HttpError, match="4 prompts"):
        asyncio.run(admit(state, ["a"] * 4, options, caller))


def test_errors_leave_nothing_behind(service: Service) -> None:
    assert service.client.status.num_in_flight == 0
    asyncio.run(asyncio.sleep(0))
    assert service.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200
