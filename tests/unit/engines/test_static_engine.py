"""The static engine: the dynamic engine's tokens in batches that run out, behind Megatron's interface."""

import asyncio
import math
from typing import Any

import pytest

from fakes import VOCAB_SIZE, make_encoder_decoder, make_llm, make_model
from kilotron.apis.engine_parts import make_controller, wrap_model
from kilotron.contexts.static_context import StaticInferenceContext
from kilotron.engines.static_engine import MCoreEngine, StaticInferenceEngine
from kilotron.errors import (
    ConfigError,
    InvalidRequestError,
    PromptTooLongError,
    RequestNotFoundError,
    TokenOutOfRangeError,
)
from kilotron.inference_request import InferenceRequest, Status
from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.model_inference_wrappers.inference_wrapper_config import InferenceWrapperConfig
from kilotron.sampling_params import CommonInferenceParams, SamplingParams
from kilotron.text_generation_controllers.text_generation_controller import SimpleTextGenerationController
from kilotron.tokenization import ByteTokenizer

MODEL = make_model()
MODEL_BYTES_PER_TOKEN = GPTInferenceWrapper(MODEL).cache_shape(1, 1).block_bytes
PROMPTS: list[Any] = ["a", "Once upon a time there was a fox", "hello", [1, 2, 3], "x" * 100, "the end", "a"]


def make_engine(max_batch_size: int | None = 3, config: Any = None, **options: Any) -> StaticInferenceEngine:
    wrapper = GPTInferenceWrapper(MODEL, config)
    controller = SimpleTextGenerationController(inference_wrapped_model=wrapper, tokenizer=ByteTokenizer())
    return MCoreEngine(text_generation_controller=controller, max_batch_size=max_batch_size, **options)


def outcome(request: InferenceRequest) -> tuple[Any, ...]:
    return (
        request.prompt_tokens,
        request.generated_tokens,
        request.generated_text,
        request.generated_log_probs,
        request.prompt_log_probs,
        request.generated_top_n_ids,
        request.finish_reason,
        request.stop_reason,
    )


@pytest.mark.parametrize("max_batch_size", [1, 3, 8])
def test_the_static_engine_gives_the_dynamic_engines_results(max_batch_size: int) -> None:
    params = [
        SamplingParams(temperature=0.0, max_tokens=9),
        SamplingParams(seed=1, max_tokens=40, return_log_probs=True, top_n_logprobs=2),
        SamplingParams(seed=2, top_k=5, max_tokens=1),
        SamplingParams(seed=3, top_p=0.8, max_tokens=17, stop=["\x10", "a"]),
        SamplingParams(seed=4, max_tokens=0, return_log_probs=True),
        SamplingParams(seed=5, temperature=2.0, max_tokens=30, frequency_penalty=0.5),
        SamplingParams(seed=6, max_tokens=12, logprobs=0, min_tokens=3, n=3),
    ]
    expected = make_llm(MODEL).generate(PROMPTS, params)
    requests = make_engine(max_batch_size).generate(prompts=PROMPTS, sampling_params=params)
    assert [[outcome(one) for one in request.choices] for request in requests] == [
        [outcome(one) for one in request.choices] for request in expected
    ]


def test_a_batch_whose_prompts_fill_several_steps_is_one_batch() -> None:
    engine = make_engine(16)
    engine.loop.scheduler.limits = engine.loop.scheduler.limits.__class__(
        **{name: getattr(engine.loop.scheduler.limits, name) for name in engine.loop.scheduler.limits.__slots__}
        | {"max_tokens": 40}
    )
    prompts = [f"{i} " * (5 + i) for i in range(16)]
    params = SamplingParams(temperature=0.0, max_tokens=50)
    expected = make_llm(MODEL).generate(prompts, params)
    assert [one.generated_tokens for one in engine.generate(prompts, params)] == [
        one.generated_tokens for one in expected
    ]


def test_each_row_of_a_batch_has_its_own_contiguous_blocks() -> None:
    engine = make_engine(3, max_sequence_length=100)
    params = SamplingParams(temperature=0.0, max_tokens=60)
    for prompt in PROMPTS[:4]:
        engine.add_request(prompt, sampling_params=params)
    for request in engine.scheduler.active_request_pool.values():
        engine.loop.add_request(request)
    for _ in range(50):
        engine.loop.step()
    running = engine.loop.scheduler.running
    assert [item.slot for item in running] == [0, 1, 2]
    assert engine.context.blocks_per_row == 4
    for item in running:
        first = 1 + (item.slot or 0) * 4
        assert item.block_ids == list(range(first, first + len(item.block_ids)))
    assert engine.loop.scheduler.check_ledger() == []


def test_a_batch_runs_out_before_the_next_begins() -> None:
    engine = make_engine(2)
    params = [SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count) for count in (2, 20, 3, 4)]
    requests = engine.generate(["a", "b", "c", "d"], params)
    assert all(request.status == Status.COMPLETED for request in requests)
    first_batch_ended = max(request.timings.finished or 0 for request in requests[:2])
    assert min(request.timings.admitted or 0 for request in requests[2:]) >= first_batch_ended


def test_the_calls_of_megatrons_documentation_work() -> None:
    engine = make_engine(max_batch_size=4)
    params = CommonInferenceParams(
        temperature=1.0, top_k=1, top_p=0.0, return_log_probs=False, num_tokens_to_generate=30
    )
    params.add_attributes({"min_length": 4, "eod_id": 153})
    prompts = ["How large is the universe ?", "Where can you celebrate birthdays ? "]
    results = engine.generate(prompts=prompts, common_inference_params=params)
    for idx, result in enumerate(results):
        assert result.prompt == prompts[idx]
        assert isinstance(result.request_id, int)
        assert result.status == Status.COMPLETED
        assert result.generated_length == len(result.generated_tokens) >= 4
        assert isinstance(result.generated_text, str)
    assert (params.min_tokens, params.termination_id) == (4, 153)


def test_min_length_and_eod_id_take_effect() -> None:
    plain = make_engine().generate(["a"], SamplingParams(temperature=0.0, max_tokens=12))[0]
    eod = plain.generated_tokens[3]
    params = CommonInferenceParams(temperature=0.0, max_tokens=12).add_attributes({"eod_id": eod})
    ended = make_engine().generate(["a"], params)[0]
    assert ended.generated_tokens == plain.generated_tokens[: plain.generated_tokens.index(eod) + 1]
    longer = make_engine().generate(["a"], params.add_attributes({"min_length": 10}))[0]
    assert longer.generated_length >= 10


def test_equal_random_seeds_give_equal_batches() -> None:
    runs = [make_engine(random_seed=7).generate(["a", "b"], SamplingParams(max_tokens=8)) for _ in range(2)]
    assert [one.generated_tokens for one in runs[0]] == [one.generated_tokens for one in runs[1]]


def test_requests_are_added_run_and_taken_by_id() -> None:
    engine = make_engine(2)
    params = SamplingParams(temperature=0.0, max_tokens=4)
    ids = [engine.add_request(prompt, sampling_params=params, add_BOS=True) for prompt in ("a", "b", "c")]
    assert list(engine.scheduler.active_request_pool) == ids[:2]
    assert list(engine.scheduler.waiting_request_pool) == ids[2:]
    engine.run_engine()
    done = engine.scheduler.completed_request_pool
    assert list(done) == ids
    assert [done[i].generated_tokens for i in ids] == [
        one.generated_tokens for one in make_engine().generate(["a", "b", "c"], params)
    ]


def test_a_request_of_the_callers_own_is_filled_in() -> None:
    own = InferenceRequest(
        request_id=77, prompt_tokens=[], prompt="a", sampling_params=SamplingParams(max_tokens=3, n=2, ignore_eos=True)
    )
    engine = make_engine()
    assert engine.generate(inference_requests=[own]) == [own]
    assert own.prompt_tokens == [256, 97]
    assert [one.generated_length for one in own.choices] == [3, 3]
    assert own.choices[0] is own


def test_a_request_that_was_put_into_the_pools_by_itself_runs_too() -> None:
    engine = make_engine(2)
    params = SamplingParams(temperature=0.0, max_tokens=3)
    ids = [engine.scheduler.add_request("a", [256, 97], sampling_params=params), engine.add_request("b")]
    ids.append(engine.scheduler.add_request("no token", [9999], sampling_params=params))
    ids.append(engine.add_request("a", sampling_params=params))
    engine.run_engine()
    done = [engine.scheduler.completed_request_pool[request_id] for request_id in ids]
    assert done[0].generated_tokens == done[3].generated_tokens != []
    assert (done[2].status, type(done[2].error)) == (Status.FAILED, TokenOutOfRangeError)


def test_a_wrong_prompt_starts_nothing() -> None:
    engine = make_engine()
    with pytest.raises(PromptTooLongError):
        engine.generate(["a", "b" * 300])
    assert engine.scheduler.num_requests_pending == 0


def test_a_failing_request_does_not_disturb_its_batch() -> None:
    bad, good = make_engine().generate(
        ["a", "b"], [SamplingParams(allowed_token_ids=[7], bad_words=["\x07"]), SamplingParams(max_tokens=2)]
    )
    assert (bad.status, good.status) == (Status.FAILED, Status.COMPLETED)


def test_an_aborted_request_is_cancelled_whether_it_waits_or_not() -> None:
    engine = make_engine(1)
    ids = [engine.add_request("a", sampling_params=SamplingParams(max_tokens=4, n=2)) for _ in range(3)]
    engine.abort_request(ids[0])
    engine.abort_request(ids[2])
    engine.run_engine()
    done = engine.scheduler.completed_request_pool
    assert [done[i].status for i in ids] == [Status.CANCELLED, Status.COMPLETED, Status.CANCELLED]
    assert [choice.status for choice in done[ids[2]].choices] == [Status.CANCELLED] * 2
    assert done[ids[0]].error is not None
    with pytest.raises(RequestNotFoundError):
        engine.abort_request(ids[1])


def test_a_stream_gives_the_request_as_it_grows() -> None:
    async def read() -> list[InferenceRequest]:
        engine = make_engine()
        params = SamplingParams(temperature=0.0, max_tokens=6)
        request_id = engine.add_request("a", sampling_params=params, streaming=True)
        other = engine.add_request("b", sampling_params=params)
        run = asyncio.create_task(engine.run_engine_async())
        snapshots = [snapshot async for snapshot in engine.get_stream_generator(request_id)]
        await run
        assert engine.scheduler.completed_request_pool[other].is_finished
        return snapshots

    snapshots = asyncio.run(read())
    whole = make_engine().generate(["a"], SamplingParams(temperature=0.0, max_tokens=6))[0]
    assert snapshots[-1].is_finished
    assert snapshots[-1].generated_text == whole.generated_text
    assert all(whole.generated_text.startswith(one.generated_text) for one in snapshots)
    assert all(whole.generated_tokens[: one.generated_length] == one.generated_tokens for one in snapshots)


def test_leaving_a_stream_aborts_its_request_and_no_other() -> None:
    async def leave() -> list[InferenceRequest]:
        engine = make_engine()
        params = SamplingParams(ignore_eos=True, max_tokens=200)
        request_id = engine.add_request("a", sampling_params=params, streaming=True)
        other = engine.add_request("b", sampling_params=params)
        run = asyncio.create_task(engine.run_engine_async())
        stream = engine.get_stream_generator(request_id)
        await anext(stream)
        await stream.aclose()
        await run
        return [engine.scheduler.completed_request_pool[one] for one in (request_id, other)]

    left, other = asyncio.run(leave())
    assert (left.status, other.status) == (Status.CANCELLED, Status.COMPLETED)
    assert 0 < left.generated_length < other.generated_length == 200


def test_a_stream_needs_an_event_loop_and_is_read_once() -> None:
    engine = make_engine()
    with pytest.raises(InvalidRequestError, match="running event loop"):
        engine.add_request("a", streaming=True)
    assert engine.scheduler.num_requests_pending == 0
    with pytest.raises(RequestNotFoundError, match="streaming=True"):
        asyncio.run(anext(engine.get_stream_generator(3)))  # type: ignore[arg-type]


def test_sizes_come_from_the_engine_the_context_or_the_config() -> None:
    context = StaticInferenceContext(max_batch_size=5, max_sequence_length=64)
    assert make_engine(None, context).context is context
    config = InferenceWrapperConfig(hidden_size=32, padded_vocab_size=VOCAB_SIZE, inference_max_seq_length=48)
    sized = make_engine(2, config).context
    assert (sized.max_batch_size, sized.max_sequence_length) == (2, 48)
    assert make_engine(None).context.max_sequence_length == 256
    small = make_engine(2, buffer_size_gb=2 * 24 * MODEL_BYTES_PER_TOKEN / 2**30, legacy=False).context
    assert (small.max_batch_size, small.max_sequence_length) == (2, 24)
    config = InferenceWrapperConfig(inference_max_requests=3, inference_max_seq_length=40)
    wrapper = GPTInferenceWrapper(MODEL, config, StaticInferenceContext.from_config(config))
    assert MCoreEngine(SimpleTextGenerationController(wrapper, None)).context is wrapper.inference_context


def test_a_part_of_another_kind_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match="T5InferenceWrapper"):
        GPTInferenceWrapper(make_encoder_decoder())
    with pytest.raises(ConfigError, match="load_tokenizer"):
        SimpleTextGenerationController(GPTInferenceWrapper(MODEL), object())  # type: ignore[arg-type]


def test_sizes_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="say it in one place"):
        make_engine(4, StaticInferenceContext(5, 64))
    with pytest.raises(ConfigError, match="positions"):
        make_engine(max_sequence_length=1000)
    with pytest.raises(ConfigError, match="hidden_size=33, but the model has 32"):
        make_engine(4, InferenceWrapperConfig(hidden_size=33))
    with pytest.raises(ConfigError, match="max_batch_size must be"):
        make_engine(-1)


@pytest.mark.parametrize("make", [make_model, make_encoder_decoder])
def test_padding_of_the_vocabulary_is_never_searched_or_scored(make: Any) -> None:
    model = make(vocab_size=300, unpadded_vocab_size=40)
    engine = MCoreEngine(make_controller(wrap_model(model), None), max_batch_size=40)
    params = SamplingParams(beam_width=40, num_return_gen=40, max_tokens=1, ignore_eos=True)
    beams = engine.generate([[1, 2, 3]], params)[0].beams
    assert sorted(beam.token_ids for beam in beams) == [[token_id] for token_id in range(40)]
    assert math.fsum(math.exp(beam.score) for beam in beams) == pytest.approx(1.0)
    with pytest.raises(TokenOutOfRangeError):
        engine.generate([[1]], SamplingParams(beam_width=2, allowed_token_ids=[40]))


def test_a_config_may_give_the_vocabulary_with_or_without_its_padding() -> None:
    model = make_model(vocab_size=60, unpadded_vocab_size=40)
    for size in (40, 60):
        assert GPTInferenceWrapper(model, InferenceWrapperConfig(padded_vocab_size=size)).vocab_size == 40
    with pytest.raises(ConfigError, match="padded_vocab_size=39"):
        GPTInferenceWrapper(model, InferenceWrapperConfig(padded_vocab_size=39))


def test_a_context_belongs_to_one_engine() -> None:
    context = StaticInferenceContext(2, 64)
    make_engine(None, context)
    with pytest.raises(ConfigError, match="belongs to an engine"):
        make_engine(None, context)


def test_a_context_says_what_it_is() -> None:
    context = StaticInferenceContext(2, 64)
    make_engine(None, context).generate(["abc"], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    assert context.is_static_batching()
    assert not context.is_dynamic_batching()
    assert str(context) == (
        "StaticInferenceContext(max_batch_size=2, max_sequence_length=64, sequence_len_offset=6, batch_size_offset=0)"
    )


def test_a_text_instead_of_a_list_of_prompts_is_refused() -> None:
    engine = make_engine()
    for generate in (engine.generate, engine.loop.generate):
        with pytest.raises(InvalidRequestError, match="put it in a list"):
            generate("ab")


def test_a_decoder_only_model_refuses_encoder_prompts() -> None:
    with pytest.raises(InvalidRequestError, match="no encoder"):
        make_engine().generate(prompts=["a"], encoder_prompts=["b"])


def test_a_closed_engine_says_so() -> None:
    engine = make_engine()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(["a"])


@pytest.mark.parametrize("max_batch_size", [4, 7])
def test_beam_search_finds_the_same_in_a_static_batch(max_batch_size: int) -> None:
    params = SamplingParams(beam_width=4, num_return_gen=3, max_tokens=40, length_penalty=0.5)
    prompts = ["a", "Once upon a time", "x" * 64]
    others = SamplingParams(temperature=0.0, max_tokens=50)
    mixed = [params, others, params]
    expected = make_llm(MODEL).generate(prompts, mixed)
    engine = make_engine(max_batch_size)
    requests = engine.generate(prompts, mixed)
    assert [outcome(one) for one in requests] == [outcome(one) for one in expected]
    assert [one.beams for one in requests] == [one.beams for one in expected]
    assert engine.loop.scheduler.check_ledger() == []
    assert engine.loop.scheduler.allocator.num_owned == 0


def test_a_batch_that_loses_its_cache_while_suspended_goes_on_with_the_same_tokens() -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=40), SamplingParams(beam_width=3, max_tokens=20)]
    engine = make_engine(4)
    requests = [engine.loop.add_request(*pair) for pair in zip(["abc", "d"], params, strict=True)]
    for _ in range(8):
        engine.loop.step()
    engine.loop.suspend("recompute")
    engine.loop.resume()
    while engine.loop.has_unfinished_requests:
        engine.loop.step()
    assert [outcome(one) for one in requests] == [outcome(one) for one in make_engine().generate(["abc", "d"], params)]
