"""lm-eval's `local-completions`, unmodified, against `kilotron serve`: the numbers are those of the library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kilotron
from kilotron import MegatronLLM, SamplingParams
from service.running_service import RunningService, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and of what it imports
]

TOKENIZER = Path(kilotron.__file__).parent / "assets" / "tiny"
CONTEXTS = [
    ("Once upon a time", " there was a little girl"),
    ("The cat sat on", " the mat."),
    ("The cat sat on", " a quantum chromodynamics"),
    ("Lily and Tom went to the park.", " They saw a big dog and they were"),
    ("Once upon a time, there was a", " little"),
    ("", "Once upon a time"),
    ("Grüße, 世界!", " 🙂"),
    ("One day", ", a boy named Tim went to play in the garden with his friend." * 6),
    ("He was very", " sad"),
]
PROMPTS = ["Once upon a time, there was", "The cat", "Lily and Tom went to the park.", "Grüße, 世界!", "One day,"]
UNTIL = [{"until": [".", "\n"], "max_gen_toks": 24}, {"until": ["girl"], "max_gen_toks": 40, "temperature": 0.0}]


@pytest.fixture(scope="module")
def api() -> Any:
    """The module with the client."""
    reason = "lm-eval is NOT INSTALLED, so nothing here is proved; pip install 'lm-eval[api]' transformers"
    pytest.importorskip("lm_eval", reason=reason)
    from lm_eval.models import openai_completions

    return openai_completions


@pytest.fixture(scope="module")
def service(api: Any) -> Iterator[RunningService]:
    with running("--num-threads", "1") as service:
        yield service


@pytest.fixture(scope="module")
def llm() -> Iterator[MegatronLLM]:
    with MegatronLLM(num_threads=1) as llm:
        yield llm


@pytest.fixture(params=["ids", "texts"])
def client(request: Any, api: Any, service: RunningService, concurrency: int, batch_size: int) -> Any:
    """Sends token ids made with the model's tokenizer, or texts, counted with the server's /tokenize."""
    by_kind = {
        "ids": {"tokenizer": str(TOKENIZER), "tokenizer_backend": "huggingface", "tokenized_requests": True},
        "texts": {"tokenizer_backend": "remote", "tokenized_requests": False},
    }
    return api.LocalCompletionsAPI(
        model="kilotron-tiny",
        base_url=f"http://127.0.0.1:{service.port}/v1/completions",
        num_concurrent=concurrency,
        batch_size=batch_size,
        max_length=1024,
        max_retries=1,
        **by_kind[request.param],
    )


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def scored(llm: MegatronLLM, context: str, continuation: str) -> tuple[float, bool]:
    """What lm-eval defines, from `MegatronLLM.score`."""
    whole = llm.tokenizer.tokenize(context + continuation, add_special_tokens=False)
    start = len(llm.tokenizer.tokenize(context, add_special_tokens=False))
    if not context:
        whole, start = [llm.tokenizer.bos_id, *whole], 1
    [request] = llm.score([whole], top_n_logprobs=1)
    scores, tops = request.prompt_log_probs[start - 1 :], request.prompt_top_n_ids[start - 1 :]
    return sum(scores), all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_loglikelihoods_are_those_of_score_to_the_last_bit(client: Any, llm: MegatronLLM) -> None:
    pairs = [*CONTEXTS, (PROMPTS[0], _generated(llm, PROMPTS[0], {"until": ["."], "max_gen_toks": 8}))]

    answers = client.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)

    expected = [scored(llm, *pair) for pair in pairs]
    assert answers == expected
    assert {greedy for _, greedy in expected} == {True, False}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_generated_texts_are_those_of_generate(client: Any, llm: MegatronLLM) -> None:
    arguments = [(prompt, dict(options)) for options in UNTIL for prompt in PROMPTS]

    answers = client.generate_until(instances("generate_until", arguments), disable_tqdm=True)

    assert answers == [_generated(llm, prompt, options) for prompt, options in arguments]


def _generated(llm: MegatronLLM, prompt: str, options: dict[str, Any]) -> str:
    params = SamplingParams(
        temperature=0.0,
        num_tokens_to_generate=options["max_gen_toks"],
        stop_words=[*options["until"], "<|endoftext|>"],
    )
    [request] = llm.generate([prompt], params)
    return request.generated_text
