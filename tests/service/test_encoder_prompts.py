"""Encoder-decoder models through a coordinator: the same tokens, and wrong requests refused before they are sent."""

from collections.abc import Iterator
from typing import Any

import pytest

from fakes import TINY_OPTIONS, make_encoder_decoder, make_llm
from kilotron.apis.llm import MegatronLLM
from kilotron.config import ServeConfig
from kilotron.errors import PromptTooLongError
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer
from service.http_calls import ask

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=6, ignore_eos=True)
SOURCES = ["What a day", "Hi", [5, 6, 7]]


@pytest.fixture(scope="module")
def coordinated() -> Iterator[MegatronLLM]:
    with MegatronLLM(make_encoder_decoder(), ByteTokenizer(), use_coordinator=True, **TINY_OPTIONS) as llm:
        yield llm


def test_both_prompts_travel(coordinated: MegatronLLM) -> None:
    with make_llm(make_encoder_decoder()) as direct:
        alone, begun = direct.generate(SOURCES, GREEDY), direct.generate(["a"] * 3, GREEDY, encoder_prompts=SOURCES)
    requests = coordinated.generate(SOURCES, GREEDY)
    assert [request.generated_tokens for request in requests] == [request.generated_tokens for request in alone]
    requests = coordinated.generate(["a"] * 3, GREEDY, encoder_prompts=SOURCES)
    assert [request.generated_tokens for request in requests] == [request.generated_tokens for request in begun]
    assert requests[2].num_cached_tokens >= 3  # the encoder's input was there


def test_what_is_too_long_is_refused_here(coordinated: MegatronLLM) -> None:
    with pytest.raises(PromptTooLongError, match="encoder's prompt has 257 tokens"):
        coordinated.generate([[5] * 257], GREEDY)


@pytest.fixture(scope="module")
def port(coordinated: MegatronLLM) -> int:
    return int(coordinated.serve(ServeConfig(port=0), blocking=False).rpartition(":")[2])


def complete(port: int, **fields: Any) -> Any:
    body = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True} | fields
    answer = ask(port, "POST", "/v1/completions", body)
    assert answer.status == 200, answer.text
    return answer.json


def test_a_server_takes_encoder_prompts(coordinated: MegatronLLM, port: int) -> None:
    found = complete(port, prompt=[97], encoder_prompt=[72, 105])["choices"][0]["token_ids"]
    assert found == coordinated.generate([[97]], GREEDY, encoder_prompts=[[72, 105]])[0].generated_tokens


def test_a_prompt_cut_to_what_fits_leaves_room_for_the_decoders_start(coordinated: MegatronLLM, port: int) -> None:
    answer = complete(port, prompt=[97] * 300, encoder_prompt=[72], truncate_prompt_tokens=-1)
    longest = coordinated.config.max_sequence_length
    assert answer["usage"]["prompt_tokens"] == 1 + longest - 6
    assert len(answer["choices"][0]["prompt_token_ids"]) == longest - 6
    too_long = {"prompt": [97] * (longest - 6), "encoder_prompt": [72], "max_tokens": 6}
    error = ask(port, "POST", "/v1/completions", too_long).error
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert f"{longest - 5} in the prompt, 6 to generate" in error["message"]
