"""An engine whose KV cache goes and comes back: the same tokens, balanced books, memory that is really given back."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fakes import assert_nothing_is_left, kv_gigabytes, make_llm, make_model, make_scripted_engine
from kilotron.config import KVMode
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.suspend_resume import KV_MODES
from kilotron.errors import (
    ConfigError,
    EngineClosedError,
    EngineSuspendedError,
    RequestAbortedError,
    SuspendFailedError,
)
from kilotron.inference_request import InferenceRequest
from kilotron.kernels.interface import KernelBackend, KVLayer, KVShape
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.sampling_params import SamplingParams
from unit.kernels.cpu_backends import ISAS, make_cpu
from unit.memory.test_host_copy import largest_file

each_mode = pytest.mark.parametrize("kv_mode", KV_MODES)
GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=6)
SHARED = [(3 * index) % 250 for index in range(20)]

# (prompt, params): a shared prefix, sampled siblings, a scored prompt that takes several steps, more than may run.
STORY: list[tuple[list[int], SamplingParams]] = [
    ([*SHARED, 7], SamplingParams(temperature=0.0, max_tokens=12, return_log_probs=True, ignore_eos=True)),
    ([*SHARED, 9, 9], SamplingParams(seed=5, n=3, max_tokens=14, repetition_penalty=1.3, ignore_eos=True)),
    ([11] * 40, SamplingParams(max_tokens=4, seed=3, return_log_probs=True, top_n_logprobs=2, ignore_eos=True)),
    ([*SHARED, 8], SamplingParams(seed=1, max_tokens=20, ignore_eos=True)),
    ([1, 2, 3], SamplingParams(seed=2, max_tokens=9, priority=-1, ignore_eos=True)),
]


def play(kernels: KernelBackend, pause: Callable[[DynamicInferenceEngine], None], at_step: int, **options: Any) -> Any:
    """Everything a caller can see of the story's requests, with a pause before one of the steps."""
    model = make_model(kernels=kernels, dtype=torch.float32)
    limits = {"max_requests": 5, "max_tokens": 16, "buffer_size_gb": kv_gigabytes(40)} | options
    with make_llm(model, **limits) as llm:
        engine = llm.engine
        engine.generate([SHARED], GREEDY)
        requests = [engine.add_request(prompt, params) for prompt, params in STORY]
        for _ in range(at_step):
            engine.step()
        assert engine.has_unfinished_requests
        pause(engine)
        while engine.has_unfinished_requests:
            engine.step()
        assert_nothing_is_left(engine)
        return [outcome(choice) for request in requests for choice in request.choices]


def outcome(request: InferenceRequest) -> tuple[object, ...]:
    return (
        request.generated_tokens,
        request.generated_text,
        request.generated_log_probs,
        request.prompt_log_probs,
        request.prompt_top_n_ids,
        request.finish_reason,
    )


def suspend_and_resume(kv_mode: KVMode) -> Callable[[DynamicInferenceEngine], None]:
    def pause(engine: DynamicInferenceEngine) -> None:
        engine.suspend(kv_mode)
        assert engine.scheduler.check_ledger() == []
        assert engine.read_load().kv_mode == kv_mode
        engine.resume()
        assert engine.scheduler.check_ledger() == []

    return pause


def assert_same_tokens(kernels: KernelBackend, kv_mode: KVMode, at_step: int, **options: Any) -> None:
    undisturbed = play(kernels, lambda engine: None, at_step, **options)
    assert play(kernels, suspend_and_resume(kv_mode), at_step, **options) == undisturbed


class ForgetfulBackend(ReferenceBackend):
    """Whose new memory never happens to hold what was there before."""

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        layers = super().allocate_kv(shape)
        for layer in layers:
            for cache in layer:
                cache.numbers[:, 1:].fill_(torch.nan)
        return layers


@pytest.mark.exact_bits
@pytest.mark.parametrize("at_step", [0, 3, 9])
@each_mode
def test_suspending_changes_no_token_on_the_reference(kv_mode: KVMode, at_step: int) -> None:
    assert_same_tokens(ForgetfulBackend(), kv_mode, at_step)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("at_step", [0, 3, 9])
@each_mode
@pytest.mark.parametrize("isa", ISAS[:1])
def test_suspending_changes_no_token_on_cpu_kernels(
    isa: str, kv_mode: KVMode, at_step: int, kv_cache_dtype: str
) -> None:
    assert_same_tokens(make_cpu(isa), kv_mode, at_step, kv_cache_dtype=kv_cache_dtype)


@pytest.mark.parametrize("isa", ISAS[:1])
def test_suspending_before_every_step_changes_no_token(isa: str) -> None:
    def take_turns(engine: DynamicInferenceEngine) -> None:
        for number in range(12):
            suspend_and_resume(KV_MODES[number % 3])(engine)
            engine.step()

    kernels = make_cpu(isa)
    assert play(kernels, take_turns, 2) == play(kernels, lambda engine: None, 2)


def test_a_cached_prefix_survives_offload_and_not_recompute() -> None:
    num_cached = {}
    for kv_mode in KV_MODES:
        engine = make_scripted_engine()
        engine.generate(["abcdefgh" * 3], GREEDY)
        suspend_and_resume(kv_mode)(engine)
        num_cached[kv_mode] = engine.generate(["abcdefgh" * 3], GREEDY)[0].num_cached_tokens
    assert num_cached == {"persist": 24, "offload": 24, "recompute": 0}


def test_recompute_sends_running_requests_back_in_order() -> None:
    engine = make_scripted_engine(max_requests=2)
    requests = [engine.add_request(letter, GREEDY) for letter in "abc"]
    engine.step()
    engine.suspend("recompute")
    load = engine.read_load()
    assert (load.num_running, load.num_waiting, load.num_blocks_free) == (0, 3, 64)
    assert [item.request for item in engine.scheduler.waiting.in_order(1)] == requests
    assert [request.num_preemptions for request in requests] == [1, 1, 0]


@each_mode
def test_a_suspended_engine_takes_no_step_and_says_so(kv_mode: KVMode) -> None:
    engine = make_scripted_engine()
    engine.suspend(kv_mode)
    with pytest.raises(EngineSuspendedError, match=kv_mode):
        engine.step()
    with pytest.raises(EngineSuspendedError):
        engine.generate(["a"], GREEDY)
    assert_nothing_is_left(engine)
    engine.close()


@each_mode
def test_a_suspended_engine_still_queues_aborts_and_expires(kv_mode: KVMode) -> None:
    engine = make_scripted_engine()
    running, aborted = engine.add_request("a", GREEDY), engine.add_request("f", GREEDY)
    late = engine.add_request(engine.intake.build("k", GREEDY, timeout_s=0.01))
    engine.step()
    engine.suspend(kv_mode)
    queued = engine.add_request("p", GREEDY)
    engine.abort(aborted.request_id)
    time.sleep(0.02)
    assert engine.end_expired() == [late]
    assert engine.scheduler.check_ledger() == []
    engine.resume()
    while engine.has_unfinished_requests:
        engine.step()
    assert [r.generated_text for r in (running, aborted, late, queued)] == ["bcdefg", "g", "l", "qrstuv"]
    assert_nothing_is_left(engine)


@each_mode
def test_repeats_change_nothing(kv_mode: KVMode) -> None:
    engine = make_scripted_engine()
    request = engine.add_request("a", GREEDY)
    engine.step()
    engine.resume()
    engine.suspend(kv_mode)
    for other in KV_MODES:
        assert engine.suspend(other) == 0
    assert engine.read_load().kv_mode == kv_mode
    engine.resume()
    engine.resume()
    while engine.has_unfinished_requests:
        engine.step()
    assert request.generated_text == "bcdefg"


@each_mode
def test_a_suspended_engine_can_be_closed(kv_mode: KVMode) -> None:
    engine = make_scripted_engine()
    request = engine.add_request("a", GREEDY)
    engine.step()
    engine.suspend(kv_mode)
    engine.close()
    assert isinstance(request.error, EngineClosedError)
    for call in (engine.resume, lambda: engine.suspend("persist")):
        with pytest.raises(EngineClosedError):
            call()


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    engine = make_scripted_engine()
    with pytest.raises(ConfigError, match="persist, offload, recompute"):
        engine.suspend(cast(KVMode, "hibernate"))
    assert engine.generate(["a"], GREEDY)[0].generated_text == "bcdefg"


def test_a_full_disk_changes_nothing() -> None:
    engine = make_scripted_engine(block_size=16, num_blocks=400, max_sequence_length=3000, max_tokens=4096)
    request = engine.add_request("a" * 1500, GREEDY)
    engine.step()
    with largest_file(4096), pytest.raises(SuspendFailedError, match="TMPDIR"):
        engine.suspend("offload")
    while engine.has_unfinished_requests:
        engine.step()
    assert request.generated_text == "bcdefg"


class HungryBackend(ReferenceBackend):
    """Has memory for one cache at a time, and only when it is told so."""

    has_memory = True

    def allocate_kv(self, shape: Any) -> Any:
        if not self.has_memory:
            raise MemoryError("all of it is gone")
        return super().allocate_kv(shape)


def test_without_memory_the_engine_stays_suspended_and_can_be_resumed_later() -> None:
    kernels = HungryBackend()
    with make_llm(make_model(kernels=kernels)) as llm:
        request = llm.engine.add_request("ab", GREEDY)
        llm.engine.step()
        llm.engine.suspend("offload")
        kernels.has_memory = False
        with pytest.raises(SuspendFailedError, match="all of it is gone"):
            llm.engine.resume()
        with pytest.raises(EngineSuspendedError):
            llm.engine.step()
        kernels.has_memory = True
        llm.engine.resume()
        while llm.engine.has_unfinished_requests:
            llm.engine.step()
        assert request.finish_reason == "length"


def test_an_offloaded_cache_that_cannot_be_read_again_is_computed_again() -> None:
    engine = make_scripted_engine()
    request = engine.add_request("abcdefgh" * 3, GREEDY)
    engine.step()
    engine.suspend("offload")
    copy: Any = engine._suspension._copy
    copy._file.truncate(1)
    engine.resume()
    assert request.num_preemptions == 1
    while engine.has_unfinished_requests:
        engine.step()
    assert request.generated_text == "ijklmn"
    assert_nothing_is_left(engine)


def test_deadlines_and_aborts_are_told_as_always() -> None:
    engine = make_scripted_engine()
    requests = [engine.add_request(letter, GREEDY) for letter in "abc"]
    engine.step()
    assert engine.abort_all() == requests
    assert all(isinstance(request.error, RequestAbortedError) for request in requests)
    assert_nothing_is_left(engine)
    assert engine.abort_all() == []


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def touch(layer: Any) -> None:
    """Writes everywhere, as long use would."""
    if hasattr(layer, "blocks"):
        layer.blocks[:] = 0
    else:
        layer.keys.numbers.zero_()
        layer.values.numbers.zero_()


@pytest.mark.parametrize("name", ["reference", *ISAS[:1]])
@pytest.mark.parametrize("kv_mode", ["offload", "recompute"])
def test_memory_is_really_given_back(kv_mode: KVMode, name: str) -> None:
    kernels = ReferenceBackend() if name == "reference" else make_cpu(name)
    with make_llm(make_model(kernels=kernels, kv_channels=256), buffer_size_gb=0.1, max_tokens=4096) as llm:
        engine = llm.engine
        for layer in engine.context.storage.layers:
            touch(layer)
        layer = None
        engine.generate([SHARED], GREEDY)
        before = resident_bytes()
        num_bytes = engine.suspend(kv_mode)
        after = resident_bytes()
        assert before - after > 0.9 * 0.1 * 2**30
        assert num_bytes == pytest.approx(before - after, abs=2**22)
        engine.resume()
        assert resident_bytes() < after + 2**24
