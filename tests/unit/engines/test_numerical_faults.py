"""A model that gives NaN for one token: the requests that hold it fail, all others never notice."""

from typing import Any

import pytest
import torch

from fakes import assert_nothing_is_left, kv_gigabytes, make_llm, make_model
from kilotron.apis.llm import MegatronLLM
from kilotron.errors import NumericalError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling_params import SamplingParams

POISON = 255
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logit_bias={POISON: -100.0})
SCORED = SamplingParams(
    temperature=0.0, max_tokens=12, ignore_eos=True, logit_bias={POISON: -100.0}, logprobs=2, prompt_logprobs=2
)
PROMPTS = [list(range(start, start + 9 + start % 5)) for start in range(0, 96, 8)]


def poisoned_model(value: float = float("nan"), **changes: Any) -> GPTModel:
    model = make_model(**changes)
    model.embedding.word_embeddings.weight[POISON, 3] = value
    return model


def make_poisoned_llm(**options: Any) -> MegatronLLM:
    # So few blocks that each is used again and again.
    return make_llm(poisoned_model(), **{"buffer_size_gb": kv_gigabytes(16), "max_tokens": 16} | options)


def results(requests: list[InferenceRequest]) -> list[Any]:
    return [(r.generated_tokens, r.generated_log_probs, r.prompt_log_probs, r.generated_top_n_ids) for r in requests]


@pytest.fixture(scope="module")
def expected() -> dict[bool, list[Any]]:
    """What the healthy prompts give when there is no poison about."""
    with make_llm(poisoned_model()) as llm:
        return {False: results(llm.generate(PROMPTS, PARAMS)), True: results(llm.generate(PROMPTS, SCORED))}


@pytest.mark.parametrize("position", [0, 5, 20, 37])
@pytest.mark.parametrize("is_scored", [False, True])
def test_a_poisoned_prompt_fails_alone(position: int, is_scored: bool, expected: dict[bool, list[Any]]) -> None:
    bad = [*range(100, 138)]
    bad[position] = POISON
    with make_poisoned_llm() as llm:
        requests = llm.generate([*PROMPTS[:6], bad, *PROMPTS[6:]], SCORED if is_scored else PARAMS)
        failed = requests.pop(6)
        again = llm.generate(PROMPTS, SCORED if is_scored else PARAMS)
        assert_nothing_is_left(llm.engine)
    assert (failed.status, failed.finish_reason, type(failed.error)) == (Status.FAILED, "error", NumericalError)
    assert f"request {failed.request_id}: the model's logits" in str(failed.error)
    assert failed.generated_tokens == []
    assert results(requests) == results(again) == expected[is_scored]


def test_a_poisoned_token_generated_on_the_way_fails_the_request_then(expected: dict[bool, list[Any]]) -> None:
    forced = SamplingParams(temperature=0.0, max_tokens=12, allowed_token_ids=[POISON])
    with make_poisoned_llm() as llm:
        requests = llm.generate([[1, 2, 3], *PROMPTS], [forced, *[PARAMS] * len(PROMPTS)])
    assert isinstance(requests[0].error, NumericalError)
    assert requests[0].generated_tokens == [POISON]
    assert results(requests[1:]) == expected[False]


@pytest.mark.parametrize("steps_before", [1, 2, 3])
def test_blocks_of_a_poisoned_request_aborted_in_its_prompt_are_clean(
    steps_before: int, expected: dict[bool, list[Any]]
) -> None:
    with make_poisoned_llm(max_tokens=8) as llm:
        bad = llm.engine.add_request([POISON] * 60, PARAMS)
        for _ in range(steps_before):
            llm.engine.step()
        llm.engine.abort(bad.request_id)
        assert results(llm.generate(PROMPTS, PARAMS)) == expected[False]
        assert results(llm.generate(PROMPTS, SCORED)) == expected[True]


def test_a_poisoned_request_fails_again_when_it_comes_again() -> None:
    with make_poisoned_llm() as llm:
        for _ in range(3):
            request = llm.generate([[*range(20), POISON, *range(20)]], PARAMS)[0]
            assert isinstance(request.error, NumericalError)


def test_what_shares_a_prefix_with_a_poisoned_request_is_right(expected: dict[bool, list[Any]]) -> None:
    prefix = [*range(30, 54)]
    with make_poisoned_llm() as llm:
        alone = llm.generate([[*prefix, 1]], PARAMS)
    with make_poisoned_llm() as llm:
        requests = llm.generate([[*prefix, POISON, 7], [*prefix, 1], [*prefix, 2, POISON]], PARAMS)
        again = llm.generate([[*prefix, 1]], PARAMS)
    assert [type(request.error) for request in requests] == [NumericalError, type(None), NumericalError]
    assert results([requests[1]]) == results(again) == results(alone)


def test_every_choice_of_a_poisoned_prompt_fails() -> None:
    with make_poisoned_llm() as llm:
        request = llm.generate([[1, POISON]], SamplingParams(n=3, max_tokens=4))[0]
        assert [type(choice.error) for choice in request.choices] == [NumericalError] * 3
        assert_nothing_is_left(llm.engine)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_fails_its_request_too(value: float) -> None:
    with make_llm(poisoned_model(value)) as llm:
        bad, good = llm.generate([[POISON, 1], [3, 1]], PARAMS)
    assert isinstance(bad.error, NumericalError)
    assert good.error is None


@pytest.mark.parametrize("changes", [{"layer_windows": (6, None)}, {"attn_logit_softcapping": 5.0}])
def test_windows_and_softcaps_do_not_let_poison_through(changes: dict[str, Any]) -> None:
    model = poisoned_model(**changes)
    with make_llm(model) as llm:
        alone = results(llm.generate(PROMPTS, SCORED))
    with make_llm(model, buffer_size_gb=kv_gigabytes(16)) as llm:
        llm.generate([[POISON] * 40] * 3, PARAMS)
        crowd = llm.generate([*PROMPTS, [POISON] * 20], SCORED)
    assert results(crowd[:-1]) == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_poison_apart_as_well(dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    model.embedding.word_embeddings.weight[POISON] = float("nan")
    with make_llm(model) as llm:
        alone = results(llm.generate(PROMPTS, SCORED))
        crowd = llm.generate([[POISON] * 9, *PROMPTS], SCORED)
    assert results(crowd[1:]) == alone


class HiccupWrapper(GPTInferenceWrapper):
    """Writes NaN into the cache in its first step, as a failing device may, and is well from then on."""

    is_well = False

    def run_one_forward_step(self, batch: InferenceBatch) -> torch.Tensor:
        logits = super().run_one_forward_step(batch)
        if not self.is_well:
            for cache in batch.kv_layers[0]:
                cache.numbers.flatten(1, 2)[:, batch.kv_slots] = float("nan")
        self.is_well = True
        return logits


def test_what_a_failed_request_computed_is_not_found_in_the_prefix_cache(expected: dict[bool, list[Any]]) -> None:
    with make_poisoned_llm(max_tokens=8) as llm:
        llm.controller.inference_wrapped_model = HiccupWrapper(poisoned_model())
        failed = llm.generate(PROMPTS[2:3], PARAMS)[0]
        again = llm.generate(PROMPTS, PARAMS)
    assert isinstance(failed.error, NumericalError)
    assert results(again) == expected[False]
