"""Encoder-decoder models through the whole engine: the logits and tokens of transformers, in every way of running."""

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
from parity.tiny_encoder_decoders import CASES, VOCAB_SIZE, make_tiny_encoder_decoder
from unit.kernels.cpu_backends import ISAS

TOLERANCE = 1e-4  # of the largest logit
NUM_STEPS = 24
OPTIONS: dict[str, Any] = {"dtype": "float32", "block_size_tokens": 8, "buffer_size_gb": 0.01, "max_requests": 32}
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True, logprobs=0, return_prompt_tokens=True)


class Subject(NamedTuple):
    """A model in transformers, where kilotron loads it from, and what kilotron makes of it in the plain way."""

    name: str
    original: PreTrainedModel
    folder: Path
    kernels: str
    plain: list[InferenceRequest]

    def load(self, **options: Any) -> MegatronLLM:
        return MegatronLLM(self.folder, kernels=self.kernels, **OPTIONS | {"max_sequence_length": 128} | options)

    @property
    def tokens(self) -> list[list[int]]:
        return [request.generated_tokens for request in self.plain]

    @torch.no_grad()
    def logits(self, encoder_tokens: list[int], decoder_tokens: list[int]) -> Tensor:
        """[decoder tokens, vocabulary]"""
        output = self.original(
            input_ids=torch.tensor([encoder_tokens]), decoder_input_ids=torch.tensor([decoder_tokens])
        )
        logits: Tensor = output.logits[0]
        return logits


def draw_tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(6, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


INPUTS = [draw_tokens(length, seed=length) for length in (1, 2, 7, 8, 19, 33, 70)]


def all_subjects() -> list[Any]:
    """(model, kernels): on the reference only one of each kind, and all of them in the slow suite."""
    own = [pytest.param((name, "cpu"), id=f"{name}-cpu") for name in CASES if ISAS]
    few = () if ISAS else CASES
    return own + [
        pytest.param(
            (name, "reference"),
            id=f"{name}-reference",
            marks=() if name in ("t5", "bart-forced", *few) else pytest.mark.slow,
        )
        for name in CASES
    ]


@pytest.fixture(scope="module", params=all_subjects())
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    name, kernels = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    original = make_tiny_encoder_decoder(name, folder)
    unfinished = Subject(name, original, folder, kernels, [])
    with unfinished.load() as llm:
        yield unfinished._replace(plain=llm.generate(INPUTS, GREEDY))
    torch.set_num_threads(threads)


def assert_close(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    error = (found - expected).abs().max() / logits.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"


def few_blocks(llm: MegatronLLM) -> float:
    """`buffer_size_gb` of half the blocks that all inputs need together."""
    needed = sum(-(-len(tokens) // 8) + 1 + NUM_STEPS // 8 for tokens in INPUTS)
    return (needed // 2 * (llm.config.kv_cache_bytes // llm.config.num_blocks) + 1) / 2**30


def test_greedy_tokens_and_their_log_probs_are_those_of_transformers(subject: Subject) -> None:
    forced = CASES[subject.name].forced_bos_token_id
    num_forced = 0 if forced is None else 1
    for encoder_tokens, request in zip(INPUTS, subject.plain, strict=True):
        tokens, log_probs = request.generated_tokens, request.generated_log_probs or []
        assert (tokens[:num_forced], log_probs[:num_forced]) == ([forced] * num_forced, [0.0] * num_forced)
        logits = subject.logits(encoder_tokens, request.prompt_tokens + tokens)[num_forced:-1]
        assert logits.argmax(-1).tolist() == tokens[num_forced:]
        expected = logits.double().log_softmax(-1)[range(NUM_STEPS - num_forced), tokens[num_forced:]]
        assert_close(torch.tensor(log_probs[num_forced:]), expected, logits)


def test_scores_of_a_decoders_prompt_are_those_of_transformers_in_chunks_too(subject: Subject) -> None:
    texts = [draw_tokens(length, seed=100 + length) for length in (1, 40, 3, 17, 60, 8, 31)]
    scoring = SamplingParams(num_tokens_to_generate=0, return_log_probs=True, return_prompt_tokens=True)
    for options in ({}, {"max_tokens": 75}):
        with subject.load(**options) as llm:
            requests = llm.generate(texts, scoring, encoder_prompts=INPUTS)
        for encoder_tokens, request in zip(INPUTS, requests, strict=True):
            tokens = request.prompt_tokens
            logits = subject.logits(encoder_tokens, tokens)[:-1]
            expected = logits.double().log_softmax(-1)[range(len(tokens) - 1), tokens[1:]]
            assert_close(torch.tensor(request.prompt_log_probs), expected, logits)


def test_transformers_generates_the_same_to_its_end(subject: Subject) -> None:
    if not CASES[subject.name].has_equal_depths:
        pytest.skip("transformers cannot generate with decoders of another depth")
    with subject.load() as llm:
        requests = llm.generate(INPUTS, SamplingParams(temperature=0.0, max_tokens=12, return_prompt_tokens=True))
    for encoder_tokens, request in zip(INPUTS, requests, strict=True):
        output = subject.original.generate(
            torch.tensor([encoder_tokens]), max_new_tokens=12, do_sample=False, num_beams=1
        )
        assert request.prompt_tokens + request.generated_tokens == output[0].tolist()


@pytest.mark.parametrize("width", [2, 4])
def test_beams_and_their_scores_are_those_of_transformers(subject: Subject, width: int) -> None:
    if not CASES[subject.name].has_equal_depths:
        pytest.skip("transformers cannot generate with decoders of another depth")
    params = SamplingParams(beam_width=width, num_return_gen=width, max_tokens=10)
    with subject.load() as llm:
        requests = llm.generate(INPUTS, params)
    for encoder_tokens, request in zip(INPUTS, requests, strict=True):
        output = subject.original.generate(
            torch.tensor([encoder_tokens]),
            max_new_tokens=10,
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            output_scores=True,
            return_dict_in_generate=True,
        )
        end = subject.original.config.eos_token_id
        expected = [_cut(tokens[1:], end) for tokens in output.sequences.tolist()]
        assert [beam.token_ids for beam in request.beams] == expected
        assert [beam.score for beam in request.beams] == pytest.approx(output.sequences_scores.tolist(), rel=1e-4)


def _cut(tokens: list[int], end: int) -> list[int]:
    """Without padding."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def test_an_input_gives_the_same_bits_alone_and_in_a_crowd(subject: Subject) -> None:
    with subject.load() as llm:
        alone = [llm.generate([tokens], GREEDY)[0] for tokens in INPUTS]
    assert [one.generated_tokens for one in alone] == subject.tokens
    assert [one.generated_log_probs for one in alone] == [one.generated_log_probs for one in subject.plain]


def test_equal_inputs_are_encoded_once_and_give_the_same_bits(subject: Subject) -> None:
    with subject.load(max_requests=64) as llm:
        requests = llm.generate(INPUTS * 3, GREEDY)
        requests += llm.generate(INPUTS, GREEDY)
        counts, load = llm.engine.scheduler.counts, llm.engine.read_load()
    num_tokens = sum(map(len, INPUTS))
    assert (counts.encoder_computed, counts.encoder_cached) == (num_tokens, 3 * num_tokens)
    num_decoder_tokens = sum(request.prompt_length for request in requests)
    assert load.num_prompt_tokens_computed + load.num_prompt_tokens_cached == 4 * num_tokens + num_decoder_tokens
    assert [one.generated_tokens for one in requests] == subject.tokens * 4
    assert [one.generated_log_probs for one in requests] == [one.generated_log_probs for one in subject.plain] * 4


def test_preempted_requests_give_the_same_bits(subject: Subject) -> None:
    with subject.load() as llm:
        size = few_blocks(llm)
    with subject.load(buffer_size_gb=size, max_tokens=90) as llm:
        requests = llm.generate(INPUTS, GREEDY)
        assert llm.engine.scheduler.num_preemptions > 0
        assert llm.engine.scheduler.check_ledger() == []
        assert llm.engine.scheduler.allocator.num_owned == 0
    assert [one.generated_log_probs for one in requests] == [one.generated_log_probs for one in subject.plain]
