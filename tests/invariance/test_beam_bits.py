"""Beam search gives the same bits alone, in a crowd, chunked, cached, preempted and suspended; so does its company."""

import random
from dataclasses import replace
from typing import Any

import pytest

from fakes import EOS_ID, assert_nothing_is_left, kv_gigabytes, make_llm
from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams

PROMPTS = [list(range(5, 5 + length)) for length in (1, 8, 20, 33)]
BEAMS = SamplingParams(beam_width=4, num_return_gen=4, max_tokens=30, logprobs=0)
GROUPS = SamplingParams(
    beam_width=6,
    num_beam_groups=3,
    diversity_penalty=1.5,
    num_return_gen=6,
    max_tokens=20,
    length_penalty=0.5,
    repetition_penalty=1.3,
    stop_token_ids=[108, 17],
)
ORDINARY = SamplingParams(max_tokens=40, seed=3, logprobs=2)
ALL_PARAMS = [BEAMS, GROUPS, ORDINARY]


def everything(request: InferenceRequest) -> tuple[Any, ...]:
    return request.generated_tokens, request.generated_log_probs, request.generated_text, request.beams


def run_all(llm: MegatronLLM) -> list[tuple[Any, ...]]:
    """Each prompt with each kind of params, in one batch."""
    pairs = [(prompt, params) for prompt in PROMPTS for params in ALL_PARAMS]
    requests = llm.generate([prompt for prompt, _ in pairs], [params for _, params in pairs])
    assert [request.error for request in requests] == [None] * len(requests)
    assert_nothing_is_left(llm.engine)
    return [everything(request) for request in requests]


@pytest.fixture(scope="module")
def alone() -> list[tuple[Any, ...]]:
    """What each request gives by itself, in an engine that computed nothing before."""
    results = []
    for prompt in PROMPTS:
        for params in ALL_PARAMS:
            with make_llm(enable_prefix_caching=False) as llm:
                results.append(everything(llm.generate([prompt], params)[0]))
    return results


def test_a_crowd_changes_nothing(alone: list[tuple[Any, ...]]) -> None:
    with make_llm(max_requests=64) as llm:
        assert run_all(llm) == alone


def test_a_warm_prefix_cache_changes_nothing(alone: list[tuple[Any, ...]]) -> None:
    with make_llm() as llm:
        run_all(llm)
        assert run_all(llm) == alone


def test_small_chunks_change_nothing(alone: list[tuple[Any, ...]]) -> None:
    with make_llm(max_tokens=19) as llm:
        assert run_all(llm) == alone


@pytest.mark.parametrize("caching", [True, False])
def test_preemption_changes_nothing(alone: list[tuple[Any, ...]], caching: bool) -> None:
    with make_llm(buffer_size_gb=kv_gigabytes(23), enable_prefix_caching=caching, max_requests=24) as llm:
        assert run_all(llm) == alone
        assert llm.engine.scheduler.num_preemptions > 3


@pytest.mark.parametrize("keeps_cache", [True, False])
def test_being_stopped_again_and_again_changes_nothing(alone: list[tuple[Any, ...]], keeps_cache: bool) -> None:
    with make_llm(max_tokens=40) as llm:
        engine = llm.engine
        requests = [engine.add_request(prompt, params) for prompt in PROMPTS for params in ALL_PARAMS]
        while engine.has_unfinished_requests:
            engine.step()
            if engine.scheduler.step % 7 == 0:
                engine.scheduler.preempt_all()
                if not keeps_cache:
                    engine.scheduler.clear_prefix_cache()
        assert [everything(request) for request in requests] == alone
        assert requests[0].num_preemptions > 1


@pytest.mark.parametrize("mode", ["persist", "offload", "recompute"])
def test_suspension_changes_nothing(alone: list[tuple[Any, ...]], mode: str) -> None:
    with make_llm() as llm:
        engine = llm.engine
        requests = [engine.add_request(prompt, params) for prompt in PROMPTS for params in ALL_PARAMS]
        for _ in range(12):
            engine.step()
        engine.suspend(mode)
        engine.resume()
        while engine.has_unfinished_requests:
            engine.step()
        assert [everything(request) for request in requests] == alone


def test_the_best_beams_log_probs_are_those_that_scoring_gives() -> None:
    with make_llm() as llm:
        request = llm.generate([PROMPTS[2]], BEAMS)[0]
        scored = llm.score([PROMPTS[2] + request.generated_tokens])[0]
        assert scored.prompt_log_probs[-len(request.generated_tokens) :] == request.generated_log_probs
        assert request.beams[0].cumulative_log_prob == sum(request.generated_log_probs)
    assert EOS_ID not in request.generated_tokens[:-1]


def test_a_beam_that_is_computed_again_beside_its_search_going_on_changes_nothing(
    alone: list[tuple[Any, ...]],
) -> None:
    """Stopped when some beams had brought their candidates and others had not; all of them come in the same step."""
    rng = random.Random(0)
    with make_llm(enable_prefix_caching=False) as llm:
        engine, scheduler = llm.engine, llm.engine.scheduler
        requests = [engine.add_request(prompt, params) for prompt in PROMPTS for params in ALL_PARAMS]
        while engine.has_unfinished_requests:
            scheduler.limits = replace(scheduler.limits, max_tokens=rng.choice([2, 4, 6, 40]))
            engine.step()
            if rng.random() < 0.05:
                scheduler.preempt_all()
        assert [everything(request) for request in requests] == alone
