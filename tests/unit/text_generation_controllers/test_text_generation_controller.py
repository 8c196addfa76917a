"""The controller: tokenizes, samples in the plan's order, and can be subclassed where people want it otherwise."""

from typing import Any

import pytest
import torch

from fakes import FailingWrapper, ScriptedWrapper, make_scripted_engine
from kilotron.errors import InvalidRequestError, NumericalError, SamplingParamsError
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling.sampler import SampledTokens
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.generation_progress import GenerationProgress
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization import ByteTokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


class NoBeginTokenizer(ByteTokenizer):
    """Puts nothing in front of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.bos_id = None

    def tokenize(self, text: str, **options: Any) -> list[int]:
        return super().tokenize(text, **options | {"add_special_tokens": False})


def test_the_begin_of_sequence_id_is_put_in_front_once() -> None:
    controller = make_scripted_engine().controller
    assert controller.tokenize_prompt("a", add_BOS=True) == controller.tokenize_prompt("a") == [256, 97]


def test_add_bos_without_such_an_id_says_so() -> None:
    engine = make_scripted_engine(tokenizer=NoBeginTokenizer())
    assert engine.generate(["a"], GREEDY)[0].prompt_tokens == [97]
    with pytest.raises(InvalidRequestError, match="no begin-of-sequence token"):
        engine.generate(["a"], SamplingParams(add_BOS=True))


def test_the_models_preparation_is_called_once() -> None:
    class Prepared(ScriptedWrapper):
        num_prepared = 0

        def prep_model_for_inference(self) -> None:
            self.num_prepared += 1

    wrapper = Prepared()
    make_scripted_engine(wrapper).generate(["a", "b"], GREEDY)
    assert wrapper.num_prepared == 1


def subclass(engine: Any, kind: type[TextGenerationController]) -> None:
    controller = engine.controller
    engine.controller = kind(
        controller.inference_wrapped_model,
        controller.tokenizer,
        table=controller._table,
        sampler=controller._sampler,
    )


def test_sampling_can_be_replaced() -> None:
    class AlwaysQ(TextGenerationController):
        def sample_from_logits(self, logits: torch.Tensor, slots: list[int], positions: list[int]) -> SampledTokens:
            count = len(logits)
            return SampledTokens([ord("q")] * count, [None] * count, [None] * count, {})

    engine = make_scripted_engine()
    subclass(engine, AlwaysQ)
    assert [request.generated_text for request in engine.generate(["a", "b"], GREEDY)] == ["qqq", "qqq"]


def test_detokenizing_can_be_replaced() -> None:
    class Shouting(TextGenerationController):
        def detokenize_generations(self, progress: GenerationProgress, reason: str) -> None:
            super().detokenize_generations(progress, reason)
            progress.request.generated_text = progress.request.generated_text.upper()

    engine = make_scripted_engine()
    subclass(engine, Shouting)
    assert engine.generate(["a"], GREEDY)[0].generated_text == "BCD"


class SometimesNaN(ScriptedWrapper):
    """NaN logits after an exclamation mark."""

    def run_one_forward_step(self, batch: InferenceBatch) -> torch.Tensor:
        logits = super().run_one_forward_step(batch)
        logits[batch.token_ids[batch.logits_index] == ord("!")] = float("nan")
        return logits


@pytest.mark.parametrize("fields", [{}, {"return_log_probs": True}, {"temperature": 1.0, "top_p": 0.5, "seed": 1}])
def test_logits_that_are_not_numbers_fail_their_row_only(fields: dict[str, Any]) -> None:
    engine, params = (
        make_scripted_engine(SometimesNaN()),
        SamplingParams(**{"temperature": 0.0, "max_tokens": 3} | fields),
    )
    requests = engine.generate(["a", "ab!", "b", "x!y"], params)
    expected = [
        type(None),
        NumericalError,
        type(None),
        NumericalError if fields.get("return_log_probs") else type(None),
    ]
    assert [type(request.error) for request in requests] == expected
    assert requests[0].generated_length == requests[2].generated_length == 3


def test_parameters_that_leave_no_token_fail_the_request_with_the_reason() -> None:
    params = SamplingParams(max_tokens=2, allowed_token_ids=[7], bad_words=["\x07"])
    bad, good = make_scripted_engine().generate(["a", "b"], [params, GREEDY])
    assert isinstance(bad.error, SamplingParamsError)
    assert "forbid every possible one" in str(bad.error)
    assert good.generated_text == "cde"


def test_a_failing_model_does_not_disturb_the_sampling_of_later_requests() -> None:
    engine = make_scripted_engine(FailingWrapper(), max_requests=1)
    params = SamplingParams(temperature=0.0, max_tokens=3, logit_bias={ord("x"): 50.0})
    bad, good = engine.generate(["!", "a"], [params, GREEDY])
    assert bad.error is not None
    assert good.generated_text == "bcd"
