"""Every architecture through the whole engine: the greedy tokens that transformers gives, in every way of running.

transformers checks what kilotron generated: given the text so far, its own choice must be the next token. By induction
that is what it would have generated itself.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from parity.tiny_models import CASES, KINDS, VOCAB_SIZE, ModelCase, make_tiny_model, models_and_kernels
from unit.kernels.cpu_backends import ISAS

NUM_STEPS = 64
LENGTHS = (1, 2, 5, 8, 13, 19, 26, 31)
BLOCK_SIZE = 8
TOLERANCE = 1e-4  # of the largest logit
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True, logprobs=0)


class Subject(NamedTuple):
    """A model in transformers, where kilotron loads it from, and what kilotron makes of it in the plain way."""

    case: ModelCase
    original: PreTrainedModel
    folder: Path
    kernels: str
    plain: list[InferenceRequest]

    def load(self, **options: Any) -> MegatronLLM:
        return load(self.folder, self.case, kernels=self.kernels, **options)

    @property
    def prompts(self) -> list[list[int]]:
        return make_prompts(self.case)

    @property
    def tokens(self) -> list[list[int]]:
        return [request.generated_tokens for request in self.plain]


def load(folder: Path, case: ModelCase, **options: Any) -> MegatronLLM:
    options = {"dtype": "float32", "block_size_tokens": BLOCK_SIZE, "buffer_size_gb": 0.01} | options
    return MegatronLLM(folder, max_sequence_length=case.max_sequence_length, **options)


def make_prompts(case: ModelCase) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = [max(length, case.shortest_prompt) for length in LENGTHS]
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def few_blocks(subject: Subject) -> float:
    """`buffer_size_gb` of half the blocks that the prompts need together."""
    needed = sum(-(-(len(prompt) + NUM_STEPS) // BLOCK_SIZE) for prompt in subject.prompts)
    with subject.load() as llm:
        block_bytes = llm.config.kv_cache_bytes // llm.config.num_blocks
    return (needed // 2 * block_bytes + 1) / 2**30


def greedy_subjects(only_kinds: bool = False) -> list[Any]:
    """(model, kernels): on the reference in the slow suite only; in some ways of running only one of each kind."""
    found = []
    for one in models_and_kernels():
        name, kernels = one.values[0]
        is_slow = (only_kinds and name not in KINDS) or (bool(ISAS) and kernels == "reference")
        found.append(pytest.param((name, kernels), id=one.id, marks=pytest.mark.slow if is_slow else ()))
    return found


@pytest.fixture(scope="module", params=greedy_subjects())
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    name, kernels = request.param
    folder, case = tmp_path_factory.mktemp("tiny"), CASES[name]
    original = make_tiny_model(name, folder)
    with load(folder, case, kernels=kernels) as llm:
        yield Subject(case, original, folder, kernels, llm.generate(make_prompts(case), GREEDY))
    torch.set_num_threads(threads)


each_kind = pytest.mark.parametrize("subject", greedy_subjects(only_kinds=True), indirect=True, scope="module")


@torch.no_grad()
def logits_of_transformers(subject: Subject, tokens: list[int], num_prompt: int) -> Tensor:
    """[generated, vocabulary]: what follows the prompt, and each generated token but the last."""
    if len(tokens) - 1 <= subject.case.longest_prompt:
        return subject.original(torch.tensor([tokens[:-1]])).logits[0, num_prompt - 1 :]
    # Its dynamic rope gives one answer per length computed at once, so it must decode token by token too.
    output = subject.original(torch.tensor([tokens[:num_prompt]]), use_cache=True)
    rows = [output.logits[0, -1:]]
    for token in tokens[num_prompt:-1]:
        output = subject.original(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        rows.append(output.logits[0])
    return torch.cat(rows)


def test_greedy_tokens_and_log_probs_are_those_of_transformers(subject: Subject) -> None:
    for request in subject.plain:
        tokens = request.prompt_tokens + request.generated_tokens
        logits = logits_of_transformers(subject, tokens, request.prompt_length)
        assert request.generated_tokens == logits.argmax(-1).tolist()
        expected = logits.double().log_softmax(-1)[range(NUM_STEPS), request.generated_tokens]
        error = (torch.tensor(request.generated_log_probs or []) - expected).abs().max()
        assert error < TOLERANCE * logits.abs().max()


@each_kind
def test_chunked_prompts_give_the_same_tokens(subject: Subject) -> None:
    with subject.load(max_tokens=9) as llm:
        requests = llm.generate(subject.prompts, GREEDY)
    assert [request.generated_tokens for request in requests] == subject.tokens


@each_kind
def test_prefix_cache_hits_give_the_same_tokens(subject: Subject) -> None:
    with subject.load() as llm:
        llm.generate(subject.prompts, GREEDY)
        requests = llm.generate(subject.prompts, GREEDY)
    assert [request.num_cached_tokens for request in requests[-3:]] == [16, 24, 24]
    assert [request.generated_tokens for request in requests] == subject.tokens


@each_kind
def test_preempted_requests_give_the_same_tokens(subject: Subject) -> None:
    with subject.load(buffer_size_gb=few_blocks(subject)) as llm:
        requests = llm.generate(subject.prompts, GREEDY)
        assert llm.engine.scheduler.num_preemptions > 0
    assert [request.generated_tokens for request in requests] == subject.tokens


@each_kind
def test_four_choices_give_the_same_tokens(subject: Subject) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True, n=4)
    with subject.load(max_requests=40) as llm:
        requests = llm.generate(subject.prompts, params)
    choices = [[choice.generated_tokens for choice in request.choices] for request in requests]
    assert choices == [[tokens] * 4 for tokens in subject.tokens]


def test_everything_at_once_gives_the_same_tokens(subject: Subject) -> None:
    with subject.load(max_tokens=18, buffer_size_gb=few_blocks(subject), max_requests=6) as llm:
        llm.generate(subject.prompts[4:], SamplingParams(max_tokens=1))
        requests = llm.generate(subject.prompts, GREEDY)
        assert llm.engine.scheduler.num_preemptions > 0
        assert sum(request.num_cached_tokens for request in requests) > 0
    assert [request.generated_tokens for request in requests] == subject.tokens
