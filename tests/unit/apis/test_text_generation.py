"""Megatron's older text-generation functions: its parameters take effect, and its shapes come back."""

from typing import Any

import pytest
import torch

from fakes import EOS_ID, ScriptedWrapper, make_encoder_decoder, make_llm, make_model, make_scripted_engine, write_out
from kilotron.apis.text_generation import (
    beam_search,
    beam_search_and_post_process,
    generate,
    generate_and_post_process,
)
from kilotron.contexts.static_context import StaticInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.errors import ConfigError, InvalidRequestError, PromptTooLongError
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

MODEL = make_model()
PROMPTS = ["Once upon", "a"]


def scripted(text: str, prompt_length: int = 2) -> DynamicInferenceEngine:
    """Writes the text whatever one-letter prompt it gets."""
    return make_scripted_engine(ScriptedWrapper(write_out(text, prompt_length)))


def test_texts_segments_log_probs_and_tokens_come_back() -> None:
    llm = make_llm(MODEL)
    texts, segments, log_probs, tokens = generate_and_post_process(
        llm, prompts=PROMPTS, tokens_to_generate=6, top_k_sampling=1, return_output_log_probs=True
    )
    expected = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=6, return_log_probs=True))
    for index, request in enumerate(expected):
        ids = request.prompt_tokens + request.generated_tokens
        assert texts[index] == PROMPTS[index] + request.generated_text
        assert segments[index] == [llm.tokenizer.token_text(token_id) for token_id in ids]
        assert log_probs[index] == request.prompt_log_probs + request.generated_log_probs
        assert len(log_probs[index]) == len(ids) - 1
        assert tokens[index][: len(ids)] == ids
    assert len(tokens[0]) == len(tokens[1])


def test_tensors_are_padded_and_say_how_long_their_rows_are() -> None:
    found = generate(make_llm(MODEL), prompts=PROMPTS, tokens_to_generate=3, use_eod_token_for_early_termination=False)
    assert found.tokens.shape == (2, 13)
    assert found.lengths.tolist() == [13, 5]
    assert found.tokens[1, 5:].tolist() == [EOS_ID] * 8
    assert found.output_log_probs is None
    assert found.logprobs_topk is None


def test_no_tokens_to_generate_scores_the_prompts() -> None:
    llm = make_llm(MODEL)
    texts, _, log_probs, tokens, top = generate_and_post_process(llm, prompts=PROMPTS, return_topk_logprobs=3)
    scored = llm.score(PROMPTS)
    assert texts == PROMPTS
    assert log_probs == [request.prompt_log_probs for request in scored]
    assert [len(row) for row in tokens] == [10, 10]
    assert top.values.shape == top.indices.shape == (2, 9, 3)
    assert top.indices[1, 1:].eq(-1).all()
    assert (top.values[0].diff(dim=-1) <= 0).all()
    for index, request in enumerate(llm.score(PROMPTS, top_n_logprobs=3)):
        for place, listed in enumerate(request.prompt_top_n_ids or []):
            assert list(listed.items())[:3] == list(
                zip(top.indices[index, place].tolist(), top.values[index, place].tolist(), strict=True)
            )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "xab\nc\n\nd: e"),
        ({"stop_on_eol": True}, "xab\n"),
        ({"stop_on_double_eol": True}, "xab\nc\n\n"),
        ({"tokens_to_generate": 2}, "xab"),
    ],
)
def test_stops_end_the_text_and_stay_in_it(options: dict[str, Any], text: str) -> None:
    options = {"tokens_to_generate": 30, "top_k_sampling": 1} | options
    assert generate_and_post_process(scripted("ab\nc\n\nd: e"), prompts=["x"], **options)[0] == [text]


def test_a_line_break_after_a_colon_can_be_prevented() -> None:
    options: dict[str, Any] = {"prompts": ["x"], "tokens_to_generate": 4, "top_k_sampling": 1}
    assert generate_and_post_process(scripted("a:\nb"), **options)[0] == ["xa:\nb"]
    prevented = generate_and_post_process(scripted("a:\nb"), **options, prevent_newline_after_colon=True)
    assert "\n" not in prevented[0][0]


def test_end_of_text_can_be_passed_by() -> None:
    options: dict[str, Any] = {"prompts": ["x"], "tokens_to_generate": 5, "top_k_sampling": 1}
    assert generate(scripted("ab"), **options).lengths.tolist() == [5]
    passed = generate(scripted("ab"), **options, use_eod_token_for_early_termination=False)
    assert passed.lengths.tolist() == [7]


def test_seeds_repeat_and_equal_prompts_of_a_batch_differ() -> None:
    options: dict[str, Any] = {"tokens_to_generate": 12, "temperature": 1.0, "top_p_sampling": 0.95, "random_seed": 4}
    runs = [generate(make_llm(MODEL), prompts=["a", "a"], **options).tokens for _ in range(2)]
    assert torch.equal(*runs)
    assert not torch.equal(runs[0][0], runs[0][1])


def test_top_p_decay_and_bound_take_effect() -> None:
    options: dict[str, Any] = {"prompts": ["a"], "tokens_to_generate": 12, "top_p_sampling": 0.9, "random_seed": 4}
    greedy = generate(make_llm(MODEL), prompts=["a"], tokens_to_generate=12, top_k_sampling=1).tokens
    plain = generate(make_llm(MODEL), **options).tokens
    decayed = generate(make_llm(MODEL), **options, top_p_decay=1e-9).tokens
    bounded = generate(make_llm(MODEL), **options, top_p_decay=1e-9, top_p_bound=0.9).tokens
    assert torch.equal(plain, bounded)
    assert not torch.equal(plain, decayed)
    assert torch.equal(decayed[0, :2], greedy[0, :2])


def test_bos_is_put_in_front_or_the_end_of_text_where_there_is_no_bos() -> None:
    class NoBegin(ByteTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.bos_id = None

        def tokenize(self, text: str, **options: Any) -> list[int]:
            return super().tokenize(text, **options | {"add_special_tokens": False})

    engine = make_scripted_engine(tokenizer=NoBegin())
    assert generate(engine, prompts=["x"]).tokens.tolist() == [[ord("x")]]
    assert generate(engine, prompts=["x"], add_BOS=True).tokens.tolist() == [[EOS_ID, ord("x")]]
    assert generate(make_scripted_engine(), prompts=["x"], add_BOS=True).tokens[0, 0] == 256


@pytest.mark.parametrize("context", [None, StaticInferenceContext(2, 128)])
def test_a_bare_model_gets_a_static_engine(context: StaticInferenceContext | None) -> None:
    options: dict[str, Any] = {"prompts": PROMPTS, "tokens_to_generate": 6, "random_seed": 1, "top_k_sampling": 20}
    expected = generate_and_post_process(make_llm(MODEL), **options)
    assert generate_and_post_process(MODEL, context, tokenizer=ByteTokenizer(), **options) == expected


def test_of_a_bare_encoder_decoder_model_the_texts_are_the_decoders() -> None:
    model, tokenizer = make_encoder_decoder(), ByteTokenizer()
    options = {"prompts": ["ab"], "tokenizer": tokenizer, "tokens_to_generate": 4}
    with make_llm(model) as llm:
        (expected,) = llm.generate(["ab"], SamplingParams(temperature=0.0, num_tokens_to_generate=4))
    texts, *_ = generate_and_post_process(model, top_k_sampling=1, **options)
    assert texts == [expected.generated_text]
    texts, _, scores = beam_search_and_post_process(model, beam_size=2, **options)
    assert not texts[0].startswith("ab")
    assert len(scores) == 1


def test_beam_search_gives_texts_segments_and_scores_best_first() -> None:
    llm = make_llm(MODEL)
    options: dict[str, Any] = {"tokens_to_generate": 8, "beam_size": 4, "num_return_gen": 3, "length_penalty": 0.7}
    texts, segments, scores = beam_search_and_post_process(llm, prompts=["a"], **options)
    params = SamplingParams(beam_width=4, num_return_gen=3, length_penalty=0.7, max_tokens=8)
    beams = llm.generate(["a"], params)[0].beams
    assert texts == ["a" + beam.text for beam in beams]
    assert scores == [beam.score for beam in beams] == sorted(scores, reverse=True)
    assert [len(row) for row in segments] == [2 + len(beam.token_ids) for beam in beams]
    tensors = beam_search(MODEL, prompts=["a"], tokenizer=ByteTokenizer(), **options)
    assert tensors.tokens[0, 2 : 2 + len(beams[0].token_ids)].tolist() == beams[0].token_ids
    assert tensors.scores.tolist() == pytest.approx(scores)


def test_a_bare_model_gets_as_many_rows_as_there_are_beams() -> None:
    found = beam_search(
        MODEL, prompts=["a"], tokenizer=ByteTokenizer(), tokens_to_generate=2, beam_size=40, num_return_gen=40
    )
    assert found.tokens.shape == (40, 4)


def test_a_stop_token_ends_beams() -> None:
    token = generate(make_llm(MODEL), prompts=["a"], tokens_to_generate=4, top_k_sampling=1).tokens[0, 4].item()
    found = beam_search(
        make_llm(MODEL), prompts=["a"], tokens_to_generate=20, beam_size=2, stop_token=token, length_penalty=-5.0
    )
    assert token in found.tokens[0].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: beam_search(llm, prompts=["a", "b"], beam_size=2), "batch size must be 1"),
        (lambda llm: beam_search(llm, prompts=["a"], tokens_to_generate=3), "beam_size must be above 1"),
        (lambda llm: generate(llm, prompts="a"), "prompts must be a list of texts"),
        (lambda llm: generate(llm, prompts=["a"], top_q=1), "unknown option 'top_q'"),
        (lambda llm: generate(llm, prompts=["a"], temperature=-1), "temperature must be"),
        (lambda llm: generate(llm, prompts=["a"], tokens_to_generate=1, return_topk_logprobs=1), "that are scored"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call(make_llm(MODEL))


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(PromptTooLongError, match="context length"):
        generate(make_llm(MODEL), prompts=["a"], tokens_to_generate=10_000)


def test_what_does_not_generate_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a MegatronLLM, an engine or a GPTModel"):
        generate(object(), prompts=["a"])
    with pytest.raises(ConfigError, match="go with a GPTModel"):
        generate(make_llm(MODEL), StaticInferenceContext(1, 8), prompts=["a"])
    with pytest.raises(ConfigError, match="no tokenizer"):
        generate(MODEL, prompts=["a"])
