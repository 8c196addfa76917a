"""Log-probabilities at the engine's door: of which tokens, how many, and what they are."""

from typing import Any

import pytest
import torch

from fakes import VOCAB_SIZE, make_llm, make_model, make_scripted_engine
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams


def generate(prompt: Any = "ab", **fields: Any) -> InferenceRequest:
    return make_scripted_engine().generate([prompt], SamplingParams(**{"temperature": 0.0, "max_tokens": 3} | fields))[
        0
    ]


def scripted_log_probs(follower: int) -> torch.Tensor:
    """What the scripted model says after a token whose successor is `follower`."""
    logits = torch.arange(VOCAB_SIZE) / VOCAB_SIZE
    logits[follower] = 5.0
    return torch.log_softmax(logits.double(), -1)


def test_generated_tokens_have_the_log_softmax_of_their_logits() -> None:
    request = generate(return_log_probs=True, skip_prompt_log_probs=True)
    expected = [scripted_log_probs(token)[token].item() for token in b"cde"]
    assert request.generated_log_probs == pytest.approx(expected, abs=1e-6)
    assert request.prompt_log_probs is None


def test_prompt_tokens_but_the_first_have_theirs() -> None:
    request = generate([*b"xyb"], return_log_probs=True)
    expected = [scripted_log_probs(ord("y"))[ord("y")].item(), scripted_log_probs(ord("z"))[ord("b")].item()]
    assert request.prompt_log_probs == pytest.approx(expected, abs=1e-6)


def test_nothing_is_returned_that_was_not_asked_for() -> None:
    request = generate()
    assert request.generated_log_probs is None
    assert request.prompt_log_probs is None
    assert request.generated_top_n_ids is None
    assert request.prompt_top_n_logprobs is None


def test_top_n_lists_the_most_likely_and_the_chosen_by_id_and_by_text() -> None:
    request = generate(return_log_probs=True, top_n_logprobs=2, allowed_token_ids=[ord("q")], max_tokens=1)
    top_ids, top_texts = (request.generated_top_n_ids or [])[0], (request.generated_top_n_logprobs or [])[0]
    assert list(top_ids) == [ord("c"), 258, ord("q")]
    assert list(top_texts) == ["c", "<|pad|>", "q"]
    assert list(top_ids.values()) == list(top_texts.values())


def test_raw_log_probs_are_the_models_own_whatever_the_filters() -> None:
    plain = generate(return_log_probs=True, max_tokens=1)
    hot = generate(return_log_probs=True, max_tokens=1, temperature=0.3, top_k=5, seed=1, logit_bias={ord("c"): 9.0})
    assert plain.generated_tokens == hot.generated_tokens
    assert plain.generated_log_probs == hot.generated_log_probs


def test_processed_log_probs_are_those_after_the_filters() -> None:
    params = SamplingParams(temperature=0.5, top_k=1, max_tokens=4, return_log_probs=True, skip_prompt_log_probs=True)
    two = SamplingParams(temperature=0.5, top_k=2, max_tokens=4, return_log_probs=True, top_n_logprobs=5, seed=1)
    with make_llm(logprobs_mode="processed_logprobs") as llm:
        request = llm.generate("ab", two)[0]
        assert llm.generate("ab", params)[0].generated_log_probs != [0.0] * 4  # greedy rows are not filtered
    for top in request.generated_top_n_ids or []:
        assert len(top) == 2
        assert sum(torch.tensor(list(top.values())).exp()) == pytest.approx(1.0, abs=1e-5)


def test_the_ending_token_has_a_log_prob_too() -> None:
    request = generate("y", return_log_probs=True)
    assert len(request.generated_log_probs or []) == len(request.generated_tokens) == 2


def test_scoring_equals_the_softmax_of_the_models_logits() -> None:
    ids = torch.randint(0, 256, (70,), generator=torch.Generator().manual_seed(3)).tolist()
    with make_llm(max_tokens=11) as llm:
        request = llm.score([ids], top_n_logprobs=VOCAB_SIZE)[0]
    for target, value, top in zip(ids[1:], request.prompt_log_probs or [], request.prompt_top_n_ids or [], strict=True):
        assert torch.tensor(list(top.values()), dtype=torch.float64).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        assert top[target] == value
        assert list(top.values()) == sorted(top.values(), reverse=True)


@pytest.mark.parametrize("length", [1, 2, 8, 9, 64])
def test_any_length_of_prompt_is_scored_once(length: int) -> None:
    for max_logits_tokens in (1, 3, 512):
        engine = make_scripted_engine(max_logits_tokens=max_logits_tokens, max_tokens=7)
        request = engine.generate([[1] * length], SamplingParams(max_tokens=0, return_log_probs=True))[0]
        assert len(request.prompt_log_probs or []) == length - 1


def test_scoring_does_not_change_what_is_generated() -> None:
    with make_llm(make_model(), max_tokens=9) as llm:
        scored, plain = (
            llm.generate(
                [[*range(40)]], SamplingParams(temperature=0.9, seed=4, return_log_probs=wanted, max_tokens=20)
            )
            for wanted in (True, False)
        )
    assert scored[0].generated_tokens == plain[0].generated_tokens
