"""Encoder-decoder models through a coordinator: the same tokens, and wrong requests refused before they are sent."""

import json
import urllib.request
from collections.abc import Iterator

import pytest

from fakes import TINY_OPTIONS, make_encoder_decoder, make_llm
from kilotron.apis.llm import MegatronLLM
from kilotron.config import ServeConfig
from kilotron.errors import PromptTooLongError
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

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


def test_a_server_takes_encoder_prompts(coordinated: MegatronLLM) -> None:
    url = coordinated.serve(ServeConfig(port=0), blocking=False)
    body = {"prompt": [97], "encoder_prompt": [72, 105], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    content = json.dumps(body | {"return_token_ids": True}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)["choices"][0]["token_ids"]
    assert found == coordinated.generate([[97]], GREEDY, encoder_prompts=[[72, 105]])[0].generated_tokens
