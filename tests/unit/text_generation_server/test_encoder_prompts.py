"""Encoder-decoder models over HTTP: `encoder_prompt` of completions, and prompts alone."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import BOS_ID, make_encoder_decoder, make_llm
from kilotron.apis.engine_facts import read_engine_facts
from kilotron.apis.llm import MegatronLLM
from kilotron.coordinator.local_client import LocalClient
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer
from serving import Service

GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def model() -> Iterator[Service]:
    with make_llm(make_encoder_decoder()) as llm:
        facts = read_engine_facts(llm._assembly)
        client = LocalClient(llm.engine, facts)
        yield Service(client, facts, ByteTokenizer(), has_template=False)
        asyncio.run(client.close())


@pytest.fixture(scope="module")
def direct() -> Iterator[MegatronLLM]:
    with make_llm(make_encoder_decoder()) as llm:
        yield llm


def expected(direct: MegatronLLM, prompts: Any, encoder_prompts: Any) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    return [request.generated_tokens for request in direct.generate(prompts, params, encoder_prompts=encoder_prompts)]


def test_a_prompt_alone_is_the_encoders(model: Service, direct: MegatronLLM) -> None:
    answer = model.post("/v1/completions", {"prompt": "What a day", **GREEDY}).json()
    assert answer["choices"][0]["token_ids"] == expected(direct, "What a day", None)[0]
    assert answer["choices"][0]["prompt_token_ids"] == [BOS_ID]
    assert answer["usage"]["prompt_tokens"] == 1 + 1 + len("What a day")


@pytest.mark.parametrize(
    ("prompt", "encoder_prompt"),
    [("Hi", "What"), ("", "What"), ([7, 8], [5, 6]), (["Hi", "Yes"], ["What", "When"]), ([[7], [8]], [[5], [6, 6]])],
)
def test_both_prompts_give_what_the_engine_gives(
    model: Service, direct: MegatronLLM, prompt: Any, encoder_prompt: Any
) -> None:
    body = {"prompt": prompt, "encoder_prompt": encoder_prompt, **GREEDY}
    choices = model.post("/v1/completions", body).json()["choices"]
    assert [choice["token_ids"] for choice in choices] == expected(direct, prompt, encoder_prompt)


def test_echo_gives_the_decoders_prompt(model: Service) -> None:
    body = {"prompt": "Hi", "encoder_prompt": "What", "echo": True, "logprobs": 0, **GREEDY}
    choice = model.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"].startswith("Hi")
    assert len(choice["logprobs"]["token_logprobs"]) == 3 + 6


def test_the_older_api_gives_the_answer_alone(model: Service, direct: MegatronLLM) -> None:
    body = {"prompts": ["What"], "tokens_to_generate": 4, "top_k": 1}
    answer = asyncio.run(_put(model, body))
    params = SamplingParams(temperature=0.0, max_tokens=4)
    assert answer["text"] == [direct.generate("What", params)[0].generated_text]


async def _put(model: Service, body: Any) -> Any:
    async with model.open() as http:
        return (await http.put("/api", json=body)).json()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": "a", "encoder_prompt": "", "add_special_tokens": False}, "encoder_prompt"),
        ({"prompt": "a", "encoder_prompt": ["b", "c"]}, "encoder_prompt"),
        ({"prompt": ["a", "b"], "encoder_prompt": ["b", ""], "add_special_tokens": False}, "encoder_prompt[1]"),
        ({"prompt": "a", "encoder_prompt": [9999]}, "encoder_prompt"),
        ({"prompt": [9999], "encoder_prompt": "a"}, "prompt"),
        ({"prompt": "a", "encoder_prompt": [["b"]]}, "encoder_prompt[0]"),
        ({"prompt": "a", "encoder_prompt": "b" * 300}, "encoder_prompt"),
        ({"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1}, None),
    ],
)
def test_what_is_wrong_is_named(model: Service, fields: dict[str, Any], param: str | None) -> None:
    response = model.post("/v1/completions", fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_model_without_an_encoder_names_the_field(service: Service) -> None:
    response = service.post("/v1/completions", {"prompt": "a", "encoder_prompt": "b"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "encoder_prompt")


def test_a_long_prompt_alone_is_cut_where_that_is_asked(model: Service, direct: MegatronLLM) -> None:
    body = {"prompt": [5] * 300 + [6, 7], "truncate_prompt_tokens": 2, **GREEDY}
    answer = model.post("/v1/completions", body).json()
    assert answer["choices"][0]["token_ids"] == expected(direct, [[6, 7]], None)[0]
