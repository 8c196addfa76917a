"""Encoder-decoder models on both engines, built by hand as Megatron's scripts do: the same tokens, and nothing left."""

from pathlib import Path
from typing import Any

import pytest

from fakes import assert_nothing_is_left, kv_gigabytes, make_encoder_decoder, make_llm
from kilotron.contexts.static_context import StaticInferenceContext
from kilotron.engines.static_engine import MCoreEngine, StaticInferenceEngine
from kilotron.errors import InvalidRequestError
from kilotron.inference_request import InferenceRequest
from kilotron.model_inference_wrappers.t5_inference_wrapper import T5InferenceWrapper
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.encoder_decoder_text_generation_controller import (
    EncoderDecoderTextGenerationController,
)
from kilotron.tokenization import ByteTokenizer

SOURCES = ["What a day", "Hi", "What a day", "It rains, and rains, and rains"]
PARAMS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True, logprobs=0),
    "sampled": SamplingParams(temperature=1.3, seed=4, n=2, max_tokens=9, ignore_eos=True, logprobs=0),
    "beams": SamplingParams(beam_width=3, num_return_gen=3, max_tokens=9),
}


def make_static(**options: Any) -> StaticInferenceEngine:
    context = StaticInferenceContext(3, 64, block_size=8)
    controller = EncoderDecoderTextGenerationController(
        inference_wrapped_model=T5InferenceWrapper(make_encoder_decoder(), context), tokenizer=ByteTokenizer()
    )
    return MCoreEngine(text_generation_controller=controller, **options)


def outcome(requests: list[InferenceRequest]) -> list[Any]:
    return [
        (
            [c.generated_tokens for c in r.choices],
            [c.generated_log_probs for c in r.choices],
            [b.score for b in r.beams],
        )
        for r in requests
    ]


@pytest.mark.parametrize("kind", PARAMS)
def test_the_static_engine_gives_the_tokens_of_the_dynamic_one(kind: str) -> None:
    params = PARAMS[kind]
    with make_llm(make_encoder_decoder()) as llm:
        expected = outcome(llm.generate(SOURCES, params))
        expected_begun = outcome(llm.generate(["Yes"] * 4, params, encoder_prompts=SOURCES))
    engine = make_static()
    assert outcome(engine.generate(SOURCES, params)) == expected
    assert outcome(engine.generate(encoder_prompts=SOURCES, sampling_params=params)) == expected
    assert outcome(engine.generate(["Yes"] * 4, params, encoder_prompts=SOURCES)) == expected_begun
    assert_nothing_is_left(engine.loop)


def test_the_static_engines_requests_may_bring_an_encoder_prompt() -> None:
    engine = make_static()
    number = engine.add_request(encoder_prompt="Hi", sampling_params=PARAMS["greedy"])
    engine.run_engine()
    request = engine.scheduler.completed_request_pool[number]
    assert request.generated_tokens == engine.generate(["Hi"], PARAMS["greedy"])[0].generated_tokens
    with pytest.raises(InvalidRequestError, match="2 encoder_prompts for 1 prompts"):
        engine.generate(["a"], encoder_prompts=["b", "c"])


@pytest.mark.parametrize("kind", PARAMS)
def test_preempted_requests_give_the_same_and_leave_nothing(kind: str) -> None:
    with make_llm(make_encoder_decoder()) as llm:
        expected = outcome(llm.generate(SOURCES, PARAMS[kind]))
    size = kv_gigabytes(24)  # of keys and values of half as many heads
    with make_llm(make_encoder_decoder(), buffer_size_gb=size) as llm:
        assert outcome(llm.generate(SOURCES, PARAMS[kind])) == expected
        assert llm.engine.scheduler.num_preemptions > 0
        assert_nothing_is_left(llm.engine)


@pytest.mark.parametrize("kv_mode", ["persist", "offload", "recompute"])
def test_a_suspended_engine_goes_on_with_the_same_tokens(kv_mode: Any) -> None:
    with make_llm(make_encoder_decoder()) as llm:
        expected = outcome(llm.generate(SOURCES, PARAMS["greedy"]))
        requests = [llm.engine.add_request(source, PARAMS["greedy"]) for source in SOURCES]
        for _ in range(4):
            llm.engine.step()
        llm.engine.suspend(kv_mode)
        llm.engine.resume()
        while llm.engine.has_unfinished_requests:
            llm.engine.step()
        assert outcome(requests) == expected
        assert_nothing_is_left(llm.engine)


def test_a_profiled_engine_gives_the_same_tokens(tmp_path: Path) -> None:
    with make_llm(make_encoder_decoder()) as llm:
        expected = outcome(llm.generate(SOURCES, PARAMS["greedy"]))
    with make_llm(make_encoder_decoder(), profile=str(tmp_path / "trace.json")) as llm:
        assert outcome(llm.generate(SOURCES, PARAMS["greedy"])) == expected
        assert llm.trace is not None


def test_a_row_that_fails_ends_alone() -> None:
    with make_llm(make_encoder_decoder()) as llm:
        expected = outcome(llm.generate(SOURCES, PARAMS["greedy"]))
    with make_llm(make_encoder_decoder()) as llm:
        controller, wrapper = llm.controller, llm.controller.inference_wrapped_model
        controller.inference_wrapped_model = _FailsOn(wrapper, len("It rains, and rains, and rains") + 1)
        requests = llm.generate(SOURCES, PARAMS["greedy"])
        assert outcome(requests)[:3] == expected[:3]
        assert requests[3].error is not None
        assert_nothing_is_left(llm.engine)


class _FailsOn:
    """A model that cannot read inputs of one length."""

    def __init__(self, inner: Any, length: int) -> None:
        self._inner = inner
        self._length = length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run_one_forward_step(self, batch: Any) -> Any:
        if self._length in batch.encoder.lengths.tolist():
            raise RuntimeError("an input that it cannot read")
        return self._inner.run_one_forward_step(batch)


@pytest.mark.parametrize(
    ("has_encoder", "encoder_tokens"), [(True, []), (True, [5] * 300), (False, [5])], ids=["none", "long", "no encoder"]
)
def test_a_request_from_elsewhere_is_checked_for_its_encoder_input(
    has_encoder: bool, encoder_tokens: list[int]
) -> None:
    with make_llm(make_encoder_decoder() if has_encoder else None) as llm:
        request = llm.engine.intake.build([5, 6], PARAMS["greedy"])
        request.encoder_tokens = encoder_tokens
        with pytest.raises(InvalidRequestError):
            llm.engine.add_request(request)
        assert_nothing_is_left(llm.engine)
