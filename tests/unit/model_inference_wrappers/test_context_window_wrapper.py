"""Models that take whole sequences, served through Megatron's three methods, by both engines."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.contexts.static_context import StaticInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.static_engine import MCoreEngine
from kilotron.errors import ConfigError
from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
from kilotron.model_inference_wrappers.inference_wrapper_config import InferenceWrapperConfig
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization import ByteTokenizer

VOCAB_SIZE = 259
PADDED_SIZE = 264
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


class Recurrent(nn.Module):
    """A model of its own kind: nothing to do with attention or with kilotron."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(PADDED_SIZE, 16)
        self.cell = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, PADDED_SIZE)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.cell(self.embedding(tokens))
        return self.head(hidden)


class RecurrentWrapper:
    """As Megatron's documentation has it."""

    vocab_size = VOCAB_SIZE

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.prompts_tokens = torch.empty(0)
        self.num_runs = 0

    def prep_model_for_inference(self, prompts_tokens: Tensor) -> None:
        self.model.eval()
        self.prompts_tokens = prompts_tokens

    def get_batch_for_context_window(self, context_start_position: int, context_end_position: int) -> list[Any]:
        return [self.prompts_tokens[:, context_start_position:context_end_position]]

    def run_one_forward_step(self, inference_input: list[Any]) -> Tensor:
        self.num_runs += 1
        return self.model(inference_input[0])


class TodaysWrapper(AbstractModelInferenceWrapper):
    """As Megatron's wrappers are since core 0.10."""

    vocab_size = VOCAB_SIZE

    def __init__(self, model: nn.Module, config: InferenceWrapperConfig, context: StaticInferenceContext) -> None:
        super().__init__(model, config, context)

    def prep_model_for_inference(self) -> None:  # type: ignore[override]
        self.model.eval()

    def prep_inference_input(self, prompts_tokens: Tensor) -> dict[str, Any]:
        return {"tokens": prompts_tokens}

    def get_batch_for_context_window(self, inference_input: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        return {"tokens": inference_input["tokens"][:, start:end]}

    def run_one_forward_step(self, inference_input: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return self.model(inference_input["tokens"])


def make_controller() -> TextGenerationController:
    return TextGenerationController(RecurrentWrapper(Recurrent()), ByteTokenizer())


def make_dynamic_engine(num_blocks: int = 65, **changes: Any) -> DynamicInferenceEngine:
    controller = make_controller()
    model = controller.inference_wrapped_model
    sizes = {"max_requests": 4, "max_sequence_length": 64} | changes
    context = DynamicInferenceContext(model.cache_shape(num_blocks, 8), model.kernels, **sizes)
    return DynamicInferenceEngine(controller, context)


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    model, tokens = Recurrent().eval(), list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1, :VOCAB_SIZE].argmax()))
    return tokens[len(prompt) :]


def test_each_row_goes_on_as_the_model_alone_would() -> None:
    prompts = [[1], [5, 6, 7, 8, 9] * 5, list(range(30)), [1]]
    for engine in (MCoreEngine(make_controller(), max_batch_size=3), make_dynamic_engine()):
        requests = engine.generate(prompts, GREEDY)
        assert [one.generated_tokens for one in requests] == [expected_tokens(prompt, 12) for prompt in prompts]


def test_todays_form_of_the_methods_works_with_the_wrappers_own_context() -> None:
    config = InferenceWrapperConfig(inference_max_requests=2, inference_max_seq_length=40)
    wrapper = TodaysWrapper(Recurrent(), config, StaticInferenceContext.from_config(config))
    engine = MCoreEngine(TextGenerationController(wrapper, ByteTokenizer()))
    assert engine.context is wrapper.inference_context
    prompts = [[1], list(range(20)), [4, 5]]
    requests = engine.generate(prompts, GREEDY)
    assert [one.generated_tokens for one in requests] == [expected_tokens(prompt, 12) for prompt in prompts]


def test_shared_prefixes_preemption_and_chunks_change_nothing() -> None:
    prompts = [[*range(20), index] for index in range(6)]
    engine = make_dynamic_engine(num_blocks=8)
    engine.scheduler.limits = type(engine.scheduler.limits)(
        **{name: getattr(engine.scheduler.limits, name) for name in engine.scheduler.limits.__slots__}
        | {"max_tokens": 7}
    )
    requests = engine.generate(prompts, GREEDY)
    assert [one.generated_tokens for one in requests] == [expected_tokens(prompt, 12) for prompt in prompts]
    assert engine.scheduler.num_preemptions > 0


def test_a_prompts_log_probabilities_are_the_models() -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    params = SamplingParams(max_tokens=0, return_log_probs=True)
    found = MCoreEngine(make_controller(), max_batch_size=1).generate([prompt], params)[0].prompt_log_probs
    with torch.inference_mode():
        table = Recurrent().eval()(torch.tensor([prompt]))[0, :, :VOCAB_SIZE].log_softmax(-1)
    expected = [table[place, token].item() for place, token in enumerate(prompt[1:])]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_long_prompt_that_is_only_taken_in_is_not_run() -> None:
    engine = make_dynamic_engine(max_sequence_length=64)
    engine.scheduler.limits = type(engine.scheduler.limits)(
        **{name: getattr(engine.scheduler.limits, name) for name in engine.scheduler.limits.__slots__}
        | {"max_tokens": 8}
    )
    engine.generate([list(range(40))], SamplingParams(temperature=0.0, max_tokens=1))
    wrapper: Any = engine.controller.inference_wrapped_model
    assert (engine.scheduler.step, wrapper.windowed.num_runs) == (5, 1)


def test_logits_of_the_wrong_shape_are_refused_with_the_shape() -> None:
    class Flat(RecurrentWrapper):
        def run_one_forward_step(self, inference_input: list[Any]) -> Tensor:
            return super().run_one_forward_step(inference_input)[:, -1]

    engine = MCoreEngine(TextGenerationController(Flat(Recurrent()), ByteTokenizer()), max_batch_size=1)
    error = engine.generate(["a"], GREEDY)[0].error
    assert f"shape [1, {PADDED_SIZE}] for a window of 2 tokens" in str(error)


def test_what_is_no_wrapper_is_refused() -> None:
    with pytest.raises(ConfigError, match="put a GPTModel into a GPTInferenceWrapper"):
        TextGenerationController(Recurrent(), ByteTokenizer())


class MegatronsOwn(AbstractModelInferenceWrapper):
    """Written as for Megatron: its base class and config, and logits of the last token only."""

    def __init__(self, model: nn.Module, inference_wrapper_config: Any) -> None:
        super().__init__(model, inference_wrapper_config)

    def prep_model_for_inference(self, prompts_tokens: Tensor | None = None) -> None:
        self.model.eval()
        self.prompts_tokens = prompts_tokens

    def get_batch_for_context_window(self, context_start_position: int, context_end_position: int) -> Any:
        return {"tokens": self.prompts_tokens[:, context_start_position:context_end_position]}

    def run_one_forward_step(self, inference_input: Any) -> Tensor:
        return self.model(inference_input["tokens"])[:, -1:]


def test_a_wrapper_written_for_megatron_runs_as_it_is() -> None:
    config = InferenceWrapperConfig(hidden_size=16, padded_vocab_size=VOCAB_SIZE, inference_max_requests=2)
    controller = TextGenerationController(MegatronsOwn(Recurrent(), config), ByteTokenizer())
    engine = MCoreEngine(text_generation_controller=controller)
    prompts = [[1], [5, 6, 7, 8, 9] * 5]
    requests = engine.generate(prompts, GREEDY)
    assert [one.generated_tokens for one in requests] == [expected_tokens(prompt, 12) for prompt in prompts]
    assert engine.context.max_batch_size == 2
    scored = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=0, return_log_probs=True))[0]
    assert "for a window of 3 tokens" in str(scored.error)


def test_a_wrapper_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="MegatronsOwn has no vocab_size"):
        TextGenerationController(MegatronsOwn(Recurrent(), None), ByteTokenizer())
