"""Beam search over HTTP: the beams of the engine asked directly, in OpenAI's and in Megatron's shapes."""

from typing import Any

import pytest

from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_server.completion_request import CompletionRequest
from kilotron.text_generation_server.http_errors import HttpError
from serving import Service

STORY = "Once upon a time, there was a"
LAST_TOKEN = 13


def search(llm: MegatronLLM, width: int, **fields: Any) -> InferenceRequest:
    params = SamplingParams(beam_width=width, num_tokens_to_generate=12, **fields)
    return llm.generate([STORY], params)[0]


def test_completions_are_the_best_beams(service: Service, llm: MegatronLLM) -> None:
    fields: dict[str, Any] = {"length_penalty": 0.5, "early_stopping": True}
    direct = search(llm, 4, num_return_gen=2, **fields)
    body = {"prompt": [STORY, "The cat"], "max_tokens": 12, "use_beam_search": True, "best_of": 4, "n": 2, **fields}
    answer = service.post("/v1/completions", body | {"logprobs": 0, "return_token_ids": True}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice, beam in zip(answer["choices"][:2], direct.beams, strict=True):
        assert (choice["text"], choice["token_ids"]) == (beam.text, beam.token_ids)
        assert (choice["score"], choice["cumulative_logprob"]) == (beam.score, beam.cumulative_log_prob)
        assert choice["logprobs"]["token_logprobs"] == beam.log_probs
        assert choice["finish_reason"] == beam.finish_reason
    generated = sum(len(choice["token_ids"]) for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == generated


def test_a_chat_is_answered_by_the_best_beams(service: Service) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "use_beam_search": True, "n": 3}
    choices = service.post("/v1/chat/completions", body).json()["choices"]
    scores = [choice["score"] for choice in choices]
    assert scores == sorted(scores, reverse=True)
    assert len({choice["message"]["content"] for choice in choices}) == 3


def test_other_answers_have_no_score(service: Service) -> None:
    assert "score" not in service.post("/v1/completions", {"prompt": STORY, "max_tokens": 2}).json()["choices"][0]


def test_megatrons_answer_has_all_beams(service: Service, llm: MegatronLLM) -> None:
    direct = search(llm, 3, num_return_gen=3, length_penalty=2.0, termination_id=LAST_TOKEN)
    body = {"prompts": [STORY], "tokens_to_generate": 12, "beam_width": 3, "length_penalty": 2}

    async def put(http: Any) -> Any:
        return await http.put("/api", json=body | {"stop_token": LAST_TOKEN})

    answer = service.run(put).json()
    assert set(answer) == {"text", "segments", "scores"}
    assert answer["text"] == [STORY + beam.text for beam in direct.beams]
    assert answer["scores"] == [beam.score for beam in direct.beams]
    assert answer["segments"][0][-1] == service.tokenizer.token_text(direct.beams[0].token_ids[-1])


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("beam_width", {"beam_width": 65}),
        ("beam_width", {"beam_width": 10**400}),
        ("length_penalty", {"length_penalty": -11}),
        ("length_penalty", {"length_penalty": 10**400}),
        ("stop_token", {"stop_token": 2048}),
        ("stop_token", {"stop_token": 10**400}),
        ("stop_on_eol", {"stop_on_eol": True}),
        ("stop_on_double_eol", {"stop_on_double_eol": True}),
        ("tokens_to_generate", {"tokens_to_generate": 0, "logprobs": True}),
        ("tokens_to_generate", {"tokens_to_generate": 10**400}),
        ("top_p_bound", {"top_p": 0.5, "top_p_bound": 10**400}),
        ("top_p_decay", {"top_p": 0.5, "top_p_decay": 10**400}),
    ],
)
def test_what_is_wrong_with_megatrons_beams_is_named(service: Service, param: str, fields: dict[str, Any]) -> None:
    async def ask(http: Any) -> Any:
        return await http.put("/api", json={"prompts": [STORY], "beam_width": 2} | fields)

    response = service.run(ask)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_chat_with_beams_lists_no_likely_tokens(service: Service) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "use_beam_search": True, "n": 2, "logprobs": True}
    response = service.post("/v1/chat/completions", body | {"top_logprobs": 1})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")


@pytest.mark.parametrize(("param", "fields"), [("n", {"n": 9}), ("best_of", {"n": 2, "best_of": 9})])
def test_more_beams_than_run_at_once_are_refused(param: str, fields: dict[str, Any]) -> None:
    request = CompletionRequest(prompt=STORY, use_beam_search=True, **fields)
    request.check_width(9)
    with pytest.raises(HttpError, match="runs 8 sequences at once") as caught:
        request.check_width(8)
    assert caught.value.param == param
