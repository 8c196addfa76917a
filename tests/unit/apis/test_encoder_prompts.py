"""The two prompts of encoder-decoder models, through every mode of the Python API."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import BOS_ID, TINY_OPTIONS, VOCAB_SIZE, make_encoder_decoder, make_llm
from kilotron.apis.async_llm import MegatronAsyncLLM
from kilotron.apis.llm import MegatronLLM
from kilotron.engines.encoder_intake import EncoderDecoderPrompt
from kilotron.errors import EmptyPromptError, InvalidRequestError, PromptTooLongError, TokenOutOfRangeError
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0)
SOURCES = ["What a day", "Hi", [5, 6, 7]]


@pytest.fixture(scope="module")
def llm() -> Iterator[MegatronLLM]:
    with make_llm(make_encoder_decoder()) as llm:
        yield llm


def test_a_prompt_alone_is_read_by_the_encoder(llm: MegatronLLM) -> None:
    request = llm.generate("Hi", GREEDY)[0]
    assert (request.encoder_prompt, request.encoder_tokens) == ("Hi", [BOS_ID, 72, 105])
    assert (request.prompt, request.prompt_tokens) == (None, [BOS_ID])


def test_with_an_encoder_prompt_the_decoder_begins_with_the_prompt(llm: MegatronLLM) -> None:
    request = llm.generate("Hi", GREEDY, encoder_prompts="What")[0]
    assert (request.encoder_prompt, request.encoder_tokens) == ("What", [BOS_ID, *b"What"])
    assert (request.prompt, request.prompt_tokens) == ("Hi", [BOS_ID, 72, 105])


@pytest.mark.parametrize("prompts", [None, ["", None, []]])
def test_nothing_to_begin_with_is_as_a_prompt_alone(llm: MegatronLLM, prompts: Any) -> None:
    alone = [request.generated_log_probs for request in llm.generate(SOURCES, GREEDY)]
    requests = llm.generate(prompts, GREEDY, encoder_prompts=SOURCES)
    assert [request.generated_log_probs for request in requests] == alone


def test_the_start_token_is_not_given_twice(llm: MegatronLLM) -> None:
    assert llm.generate([[BOS_ID, 9]], GREEDY, encoder_prompts=["Hi"])[0].prompt_tokens == [BOS_ID, 9]


def test_pairs_may_be_given_as_prompts(llm: MegatronLLM) -> None:
    pairs = [EncoderDecoderPrompt(source, "Yes") for source in SOURCES]
    expected = llm.generate(["Yes"] * 3, GREEDY, encoder_prompts=SOURCES)
    assert [r.generated_tokens for r in llm.generate(pairs, GREEDY)] == [r.generated_tokens for r in expected]


def test_a_stream_has_the_same_text(llm: MegatronLLM) -> None:
    whole = llm.generate("Yes", GREEDY, encoder_prompts="Hi")[0].generated_text
    assert "".join(item.text for item in llm.generate_stream("Yes", GREEDY, encoder_prompt="Hi")) == whole


def test_scoring_wants_a_text_for_the_decoder(llm: MegatronLLM) -> None:
    with pytest.raises(InvalidRequestError, match="give the text to score as prompt"):
        llm.score("Hi")
    scoring = SamplingParams(num_tokens_to_generate=0, return_log_probs=True)
    request = llm.generate("Hi", scoring, encoder_prompts="What")[0]
    assert len(request.prompt_log_probs or []) == 2


def test_a_model_without_an_encoder_refuses_encoder_prompts() -> None:
    with make_llm() as plain, pytest.raises(InvalidRequestError, match="has no encoder"):
        plain.generate("Hi", encoder_prompts="What")


@pytest.mark.parametrize(
    ("prompts", "encoder_prompts", "error"),
    [
        (["a", "b"], ["c"], InvalidRequestError),
        ([EncoderDecoderPrompt("a")], ["c"], InvalidRequestError),
        (None, [[]], EmptyPromptError),
        (None, [[VOCAB_SIZE]], TokenOutOfRangeError),
        ([[VOCAB_SIZE]], ["a"], TokenOutOfRangeError),
        (None, [[5] * 257], PromptTooLongError),
        (None, None, InvalidRequestError),
    ],
)
def test_what_is_wrong_is_refused(llm: MegatronLLM, prompts: Any, encoder_prompts: Any, error: type) -> None:
    with pytest.raises(error):
        llm.generate(prompts, GREEDY, encoder_prompts=encoder_prompts)


def test_an_input_longer_than_a_step_is_refused() -> None:
    with make_llm(make_encoder_decoder(), max_tokens=8) as small, pytest.raises(PromptTooLongError, match="takes 7"):
        small.generate([[5] * 8])


def test_async_calls_give_the_same(llm: MegatronLLM) -> None:
    async def main() -> list[list[int]]:
        async with MegatronAsyncLLM(make_encoder_decoder(), ByteTokenizer(), **TINY_OPTIONS) as other:
            both = await other.generate(None, GREEDY, encoder_prompts=SOURCES)
            single = await other.generate("Yes", GREEDY, encoder_prompts="Hi")
            return [*(request.generated_tokens for request in both), single.generated_tokens]  # type: ignore[union-attr]

    expected = llm.generate(SOURCES, GREEDY) + llm.generate("Yes", GREEDY, encoder_prompts="Hi")
    assert asyncio.run(main()) == [request.generated_tokens for request in expected]
