"""The same request gives the same bits through the whole service, however busy it is and wherever it runs.

Two replicas: alone, beside others, with what it needs in the prefix cache or not, equal to the library asked directly.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kilotron import MegatronLLM, SamplingParams
from service.running_service import RunningService, running

LONG = "Once upon a time there was a little girl called Lily who loved to play in the park with her dog. " * 4
PROMPTS = [LONG, LONG + "One day", "The cat", "Grüße, 世界!", list(range(40, 140)), [5]]
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 24},
    {"temperature": 1.0, "top_p": 0.9, "seed": 3, "max_tokens": 24, "n": 2},
    {"temperature": 1.7, "top_p": 1.0, "top_k": 40, "seed": -5, "max_tokens": 16, "repetition_penalty": 1.2},
    {"temperature": 0.8, "top_p": 0.95, "min_p": 0.02, "seed": 7, "max_tokens": 24, "stop": [".", "the"]},
]
# What the checkpoint would recommend otherwise.
DEFAULTS: dict[str, Any] = {"top_p": 1.0}
REQUESTS = [{"prompt": prompt, **DEFAULTS, **params} for prompt in PROMPTS for params in PARAMS]
Result = list[tuple[list[int], str, list[float], str]]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running("--num-threads", "1", "--routing", "round_robin", num_replicas=2) as service:
        yield service


@pytest.fixture(scope="module")
def expected() -> list[Result]:
    with MegatronLLM(num_threads=1) as llm:
        params = [SamplingParams.from_dict(_named(request)) for request in REQUESTS]
        done = llm.generate([request["prompt"] for request in REQUESTS], params)
    return [[_result(choice) for choice in request.choices or [request]] for request in done]


def _named(request: dict[str, Any]) -> dict[str, Any]:
    names = {"max_tokens": "num_tokens_to_generate", "stop": "stop_words"}
    fields = {names.get(name, name): value for name, value in request.items() if name != "prompt"}
    return fields | {"return_log_probs": True, "skip_prompt_log_probs": True}


def _result(choice: Any) -> tuple[list[int], str, list[float], str]:
    return choice.generated_tokens, choice.generated_text, choice.generated_log_probs, choice.finish_reason


def ask(service: RunningService, request: dict[str, Any]) -> Result:
    answer = service.ask("POST", "/v1/completions", request | {"logprobs": 0, "return_token_ids": True})
    assert answer.status == 200, answer.text
    return [
        (choice["token_ids"], choice["text"], choice["logprobs"]["token_logprobs"], choice["finish_reason"])
        for choice in answer.json["choices"]
    ]


def test_alone_each_request_gives_what_the_library_gives(service: RunningService, expected: list[Result]) -> None:
    for request, result in zip(REQUESTS, expected, strict=True):
        assert ask(service, request) == result  # on one replica
        assert ask(service, request) == result  # on the other


def test_beside_others_and_from_the_prefix_cache_it_is_the_same(
    service: RunningService, expected: list[Result]
) -> None:
    num_hits = service.metrics().get("prefix_cache_hits_total", 0)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda request: ask(service, request), REQUESTS * 3))
    assert results == expected * 3
    assert service.metrics()["prefix_cache_hits_total"] > num_hits


def test_another_salt_computes_everything_anew_and_gives_the_same(
    service: RunningService, expected: list[Result]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        salted = [request | {"cache_salt": f"salt {index}"} for index, request in enumerate(REQUESTS)]
        assert list(pool.map(lambda request: ask(service, request), salted)) == expected
