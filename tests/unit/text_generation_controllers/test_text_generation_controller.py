"""The controller: tokenizes, samples in the plan's order, and can be subclassed where people want it otherwise."""

from typing import Any

import pytest
import torch

from fakes import VOCAB_SIZE, FailingWrapper, ScriptedWrapper, make_scripted_engine
from kilotron.errors import InvalidRequestError, NumericalError, SamplingParamsError
from kilotron.models.inference_batch import InferenceBatch
from kilotron.sampling.sampler import SampledTokens
from kilotron.sampling_params import SamplingParams
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

        def prep_model_for_inference(self, prompts_tokens: Any = None) -> None:
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


def test_sampling_can_be_replaced_for_all_rows_at_once() -> None:
    class AlwaysQ(TextGenerationController):
        def sample_rows(self, logits: torch.Tensor, slots: list[int], positions: list[int]) -> SampledTokens:
            count = len(logits)
            return SampledTokens([ord("q")] * count, [None] * count, [None] * count, {})

    engine = make_scripted_engine()
    subclass(engine, AlwaysQ)
    assert [request.generated_text for request in engine.generate(["a", "b"], GREEDY)] == ["qqq", "qqq"]


def test_sampling_can_be_replaced_with_megatrons_signature() -> None:
    class SecondBest(TextGenerationController):
        def sample_from_logits(
            self, last_token_logits: torch.Tensor, common_inference_params: SamplingParams, vocab_size: int
        ) -> torch.Tensor:
            assert common_inference_params.attributes["rank"] == 2
            return torch.topk(last_token_logits[:, :vocab_size], 2).indices[:, 1]

    engine = make_scripted_engine()
    subclass(engine, SecondBest)
    params = SamplingParams(max_tokens=3, return_log_probs=True, skip_prompt_log_probs=True).add_attributes({"rank": 2})
    request = engine.generate(["a"], params)[0]
    assert request.generated_tokens == [VOCAB_SIZE - 1] * 3
    plain = make_scripted_engine().generate(
        [[256, 97, *[VOCAB_SIZE - 1] * 3]], SamplingParams(max_tokens=0, logprobs=0, prompt_logprobs=0)
    )
    assert request.generated_log_probs == plain[0].prompt_log_probs[1:]


def test_an_override_that_asks_for_the_usual_token_gets_it() -> None:
    class Usual(TextGenerationController):
        def sample_from_logits(self, last_token_logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            return super().sample_from_logits(last_token_logits, *rest)

    params = SamplingParams(max_tokens=12, temperature=3.0, seed=5, frequency_penalty=1.0, min_tokens=12)
    engine = make_scripted_engine()
    subclass(engine, Usual)
    expected = make_scripted_engine().generate(["a", "xyz"], params)
    assert [one.generated_tokens for one in engine.generate(["a", "xyz"], params)] == [
        one.generated_tokens for one in expected
    ]


def test_an_override_may_ask_for_other_params_than_the_requests() -> None:
    class Greedy(TextGenerationController):
        def sample_from_logits(self, last_token_logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            return super().sample_from_logits(last_token_logits, SamplingParams(temperature=0.0), rest[1])

    engine = make_scripted_engine()
    subclass(engine, Greedy)
    assert engine.generate(["a"], SamplingParams(max_tokens=3, temperature=50.0))[0].generated_text == "bcd"


def test_an_override_that_chooses_no_token_fails_its_request_alone() -> None:
    class Choosy(TextGenerationController):
        def sample_from_logits(self, last_token_logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            best = last_token_logits.argmax(-1)
            return best if best.item() != ord("c") else torch.tensor([10_000])

    engine = make_scripted_engine()
    subclass(engine, Choosy)
    bad, good = engine.generate(["a", "d"], GREEDY)
    assert "sample_from_logits gave" in str(bad.error)
    assert good.generated_text == "efg"


def test_detokenizing_can_be_replaced() -> None:
    class Shouting(TextGenerationController):
        def detokenize_generations(self, tokens: Any) -> str:
            return super().detokenize_generations(tokens).upper()

    engine = make_scripted_engine()
    subclass(engine, Shouting)
    params = [GREEDY, SamplingParams(temperature=0.0, stop=["D"]), SamplingParams(temperature=0.0, max_tokens=9)]
    requests = engine.generate(["a", "a", "y"], params)
    assert [request.generated_text for request in requests] == ["BCD", "BCDEFGHIJKLMNOPQRSTUVWXYZ", "Z"]


def test_the_end_of_a_request_can_be_decided_otherwise() -> None:
    class NoVowels(TextGenerationController):
        def update_generation_status(self, row: Any, token_id: int | None, result: Any) -> Any:
            ended = super().update_generation_status(row, token_id, result)
            if ended is None and token_id in b"aeiou":
                progress = self.progress_of(row.request_id)
                self.finish_request(progress, "stop")
                return progress.request
            return ended

    engine = make_scripted_engine()
    subclass(engine, NoVowels)
    request = engine.generate(["a"], SamplingParams(temperature=0.0, max_tokens=20))[0]
    assert (request.generated_text, request.finish_reason) == ("bcde", "stop")


def test_a_tokenizer_of_ones_own_may_give_a_tensor_and_know_nothing_of_add_bos() -> None:
    class Reversed(TextGenerationController):
        def tokenize_prompt(self, prompt: str) -> Any:  # type: ignore[override]
            return torch.tensor(list(prompt[::-1].encode()))

    engine = make_scripted_engine()
    subclass(engine, Reversed)
    engine.intake._prompts = engine.controller
    assert engine.generate(["ab"], GREEDY)[0].prompt_tokens == [98, 97]


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
