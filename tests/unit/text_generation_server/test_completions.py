"""/v1/completions: the same tokens, texts and log-probabilities as the engine asked directly, in OpenAI's shapes."""

from typing import Any

import pytest
from openai.types import Completion

from kilotron.apis.llm import MegatronLLM
from kilotron.sampling_params import SamplingParams
from serving import Service, events_of

STORY = "Once upon a time, there was a"
STREAM_CASES: list[dict[str, Any]] = [
    *({"prompt": STORY, "max_tokens": 40, "seed": seed} for seed in range(6)),
    *(
        {"prompt": STORY, "max_tokens": 60, "temperature": 0, "stop": stop}
        for stop in (" a", ["was", "girl"], ".", "\n")
    ),
    {"prompt": STORY, "max_tokens": 30, "seed": 3, "stop": [" the"], "include_stop_str_in_output": True},
    {"prompt": "caf\u00e9 \u6f22\u5b57 \U0001f600", "max_tokens": 40, "seed": 5, "temperature": 2, "top_p": 1},
    {"prompt": "\U0001f469\u200d\U0001f469\u200d\U0001f467", "max_tokens": 60, "seed": 6, "temperature": 2, "top_p": 1},
    {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 20, "seed": 7, "n": 3, "echo": True},
    {"prompt": [STORY, "The cat"], "max_tokens": 12, "seed": 8, "logprobs": 3},
    {"prompt": STORY, "max_tokens": 12, "seed": 9, "logprobs": 2, "echo": True},
    {"prompt": STORY, "max_tokens": 12, "seed": 9, "logprobs": 0, "return_token_ids": True, "stream_interval": 5},
    {"prompt": STORY, "max_tokens": 5, "seed": 9, "prompt_logprobs": 2},
    {"prompt": STORY, "max_tokens": 100, "seed": 10, "ignore_eos": True, "skip_special_tokens": False},
]


def test_the_answer_has_the_tokens_of_the_engine_asked_directly(service: Service, llm: MegatronLLM) -> None:
    fields = {"temperature": 0.8, "top_p": 0.95, "seed": 11, "n": 2, "stop": ["."]}
    direct = llm.generate(STORY, SamplingParams(num_tokens_to_generate=30, **fields))[0]
    body = {"prompt": STORY, "max_tokens": 30, "return_token_ids": True, **fields}
    answer = service.post("/v1/completions", body).json()
    for choice, expected in zip(answer["choices"], direct.choices, strict=True):
        assert choice["token_ids"] == expected.generated_tokens
        assert choice["text"] == expected.generated_text
        assert choice["finish_reason"] == expected.finish_reason
        assert choice["stop_reason"] == expected.stop_reason
    assert answer["usage"]["prompt_tokens"] == len(direct.prompt_tokens)
    assert answer["usage"]["completion_tokens"] == sum(len(choice.generated_tokens) for choice in direct.choices)


def test_what_is_not_given_is_what_the_checkpoint_recommends(service: Service, llm: MegatronLLM) -> None:
    answer = service.post("/v1/completions", {"prompt": STORY, "max_tokens": 20, "seed": 12}).json()
    params = SamplingParams(temperature=0.7, top_p=0.9, num_tokens_to_generate=20, seed=12)
    assert answer["choices"][0]["text"] == llm.generate(STORY, params)[0].generated_text


def test_the_default_length_is_sixteen(service: Service) -> None:
    answer = service.post("/v1/completions", {"prompt": STORY, "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_scores_a_prompt_as_score_does(service: Service, llm: MegatronLLM, max_tokens: int) -> None:
    ids = [service.tokenizer.tokenize(text) for text in (STORY, "The cat sat on the mat.", "zzz qqq")]
    body = {"prompt": ids, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1}
    answer = service.post("/v1/completions", body).json()
    for choice, tokens, scored in zip(answer["choices"], ids, llm.score(ids, top_n_logprobs=1), strict=True):
        logprobs = choice["logprobs"]
        num_all = len(tokens) + max_tokens
        assert {len(values) for values in logprobs.values()} == {num_all}
        assert logprobs["token_logprobs"][: len(tokens)] == [None, *scored.prompt_log_probs]
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["text_offset"][0] == 0
        for token_id, value, top in zip(
            tokens[1:], scored.prompt_log_probs, logprobs["top_logprobs"][1:], strict=False
        ):
            text = service.tokenizer.token_text(token_id)
            # lm-eval's is_greedy: the identical float must be there.
            assert top[text] == value
            assert max(top.values()) >= value
        offsets = logprobs["text_offset"][: len(tokens)]
        assert offsets == service.tokenizer.offsets(tokens, service.tokenizer.detokenize(tokens))


def test_greedy_tokens_are_the_likeliest_in_their_place(service: Service) -> None:
    body = {"prompt": STORY, "max_tokens": 20, "temperature": 0, "logprobs": 5}
    logprobs = service.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert value == max(top.values())


def test_token_ids_instead_of_texts(service: Service) -> None:
    body = {
        "prompt": STORY,
        "max_tokens": 3,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
    }
    choice = service.post("/v1/completions", body).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    assert choice["prompt_token_ids"] == service.tokenizer.tokenize(STORY)


def test_prompt_logprobs_are_vllms(service: Service, llm: MegatronLLM) -> None:
    ids = service.tokenizer.tokenize(STORY)
    body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 2}
    entries = service.post("/v1/completions", body).json()["choices"][0]["prompt_logprobs"]
    scored = llm.score([ids], top_n_logprobs=2)[0]
    assert entries[0] is None
    for token_id, value, entry in zip(ids[1:], scored.prompt_log_probs, entries[1:], strict=True):
        assert entry[str(token_id)]["logprob"] == value
        assert entry[str(token_id)]["decoded_token"] == service.tokenizer.token_text(token_id)


def test_choices_are_numbered_by_prompt_and_then_by_choice(service: Service, llm: MegatronLLM) -> None:
    prompts = ["The cat", "The dog", "A bird"]
    answer = service.post(
        "/v1/completions", {"prompt": prompts, "n": 2, "max_tokens": 6, "seed": 3, "echo": True}
    ).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for choice in answer["choices"]:
        assert choice["text"].startswith(prompts[choice["index"] // 2])
    assert answer["usage"]["prompt_tokens"] == sum(len(service.tokenizer.tokenize(text)) for text in prompts)


def test_all_shapes_are_openais(service: Service) -> None:
    body = {"prompt": [STORY, "The"], "max_tokens": 5, "logprobs": 2, "n": 2}
    completion = Completion.model_validate(service.post("/v1/completions", body).json(), strict=True)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    response = service.post("/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    chunks = events_of(response.text)
    for chunk in chunks:
        for choice in chunk["choices"]:  # null before the end, which the client's types do not say but all servers do
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(chunk, strict=True)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == completion.usage.prompt_tokens


def test_usage_can_come_with_every_chunk(service: Service) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": STORY, "max_tokens": 5, "ignore_eos": True, "stream": True, "stream_options": options}
    counts = [chunk["usage"]["completion_tokens"] for chunk in events_of(service.post("/v1/completions", body).text)]
    assert counts == sorted(counts)
    assert counts[-1] == 5


@pytest.mark.parametrize("case", STREAM_CASES, ids=range(len(STREAM_CASES)))
def test_a_stream_put_together_is_the_whole_answer(service: Service, case: dict[str, Any]) -> None:
    whole = service.post("/v1/completions", case).json()
    chunks = events_of(service.post("/v1/completions", {**case, "stream": True}).text)
    for expected in whole["choices"]:
        pieces = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == expected["index"]]
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        for name in ("finish_reason", "stop_reason", "prompt_logprobs"):
            assert pieces[-1].get(name) == expected.get(name)
        if expected["logprobs"] is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [entry for piece in pieces for entry in piece["logprobs"][name]]
                assert joined == expected["logprobs"][name]
        if "token_ids" in expected:
            assert [token_id for piece in pieces for token_id in piece["token_ids"]] == expected["token_ids"]
            assert pieces[0]["prompt_token_ids"] == expected["prompt_token_ids"]


def test_random_streams_of_all_kinds_of_text_are_the_whole_answer(service: Service) -> None:
    for seed in range(40):
        body = {
            "prompt": ["ä", "\u4f60\u597d", "\U0001f680 go", "e\u0301", "\u0645\u0631\u062d\u0628\u0627"][seed % 5],
            "max_tokens": 24,
            "seed": seed,
            "temperature": 2,
            "top_p": 1,
            "logit_bias": {str(token_id): 4 for token_id in range(130, 260)},  # bytes that are no ASCII
            "stop": [["e"], ["\n", "a "], []][seed % 3],
        }
        whole = service.post("/v1/completions", body).json()["choices"][0]["text"]
        chunks = events_of(service.post("/v1/completions", {**body, "stream": True}).text)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


def test_truncation_keeps_the_end_of_the_prompt(service: Service) -> None:
    ids = service.tokenizer.tokenize(STORY)
    body = {"prompt": STORY, "max_tokens": 1, "truncate_prompt_tokens": 3, "return_token_ids": True}
    assert service.post("/v1/completions", body).json()["choices"][0]["prompt_token_ids"] == ids[-3:]


def test_the_second_time_most_of_the_prompt_is_cached(service: Service) -> None:
    body = {"prompt": [list(range(100, 240))], "max_tokens": 1, "cache_salt": "cached test"}
    details = [service.post("/v1/completions", body).json()["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert [detail["cached_tokens"] > 0 for detail in details] == [False, True]
    other = service.post("/v1/completions", {**body, "cache_salt": "another"}).json()["usage"]
    assert other["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_deadline_ends_a_request_with_504(service: Service) -> None:
    body = {"prompt": "a", "max_tokens": 900, "ignore_eos": True}
    response = service.post("/v1/completions", body, headers={"x-request-timeout-ms": "5"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
