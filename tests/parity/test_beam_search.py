"""Beam search against transformers' own: the same sequences, best first, with the same scores."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from parity.tiny_models import VOCAB_SIZE, make_tiny_model

END_IDS = [2, 7, 11]
LIKELY_END = 3.0  # times the weights of the end ids' logits
LENGTHS = (1, 8, 21)
OPTIONS: dict[str, Any] = {"dtype": "float32", "block_size_tokens": 8, "buffer_size_gb": 0.01, "max_requests": 64}
Found = list[tuple[list[int], float]]


class Subject(NamedTuple):
    """A tiny model in transformers, and where kilotron loads it from."""

    original: PreTrainedModel
    folder: Path

    def load(self, **options: Any) -> MegatronLLM:
        return MegatronLLM(self.folder, **OPTIONS | options)

    @torch.no_grad()
    def search(self, prompt: list[int], params: SamplingParams, **more: Any) -> Found:
        """What transformers finds."""
        output = self.original.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            num_beams=params.beam_width,
            num_return_sequences=params.num_return_gen,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            max_new_tokens=params.num_tokens_to_generate,
            min_new_tokens=params.min_tokens or None,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=list(params.stop_token_ids) or None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **more,
        )
        sequences = [_without_padding(row[len(prompt) :], params) for row in output.sequences.tolist()]
        return list(zip(sequences, output.sequences_scores.tolist(), strict=True))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    original = make_tiny_model(request.param, folder)
    original.get_output_embeddings().weight.data[END_IDS] *= LIKELY_END
    original.save_pretrained(folder)
    yield Subject(original, folder)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llm(subject: Subject) -> Iterator[MegatronLLM]:
    with subject.load() as llm:
        yield llm


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(12, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


def beam_params(width: int, **fields: Any) -> SamplingParams:
    defaults: dict[str, Any] = {
        "num_return_gen": width,
        "max_tokens": 12,
        "ignore_eos": True,
        "stop_token_ids": END_IDS,
    }
    return SamplingParams(beam_width=width, **defaults | fields)


def found_by(request: InferenceRequest) -> Found:
    return [(beam.token_ids, beam.score) for beam in request.beams]


def assert_same(found: Found, expected: Found) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-4)


def _without_padding(tokens: list[int], params: SamplingParams) -> list[int]:
    ends = [index for index, token in enumerate(tokens) if token in params.stop_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


def check(subject: Subject, llm: MegatronLLM, params: list[SamplingParams], **more: Any) -> list[InferenceRequest]:
    """All prompts with all params in one batch."""
    pairs = list(itertools.product(make_prompts(), params))
    requests = llm.generate([prompt for prompt, _ in pairs], [one for _, one in pairs])
    for request, (prompt, one) in zip(requests, pairs, strict=True):
        assert_same(found_by(request), subject.search(prompt, one, **more))
        best = request.beams[0]
        assert (request.generated_tokens, request.finish_reason) == (best.token_ids, best.finish_reason)
    return requests


@pytest.mark.parametrize("width", [2, 4, 8])
def test_sequences_and_scores_are_those_of_transformers(subject: Subject, llm: MegatronLLM, width: int) -> None:
    penalties, stops = (0.0, 0.6, 1.0, 2.0), (False, True, "never")
    params = [
        beam_params(width, length_penalty=penalty, early_stopping=stop)
        for penalty, stop in itertools.product(penalties, stops)
    ]
    requests = check(subject, llm, params)
    reasons = {beam.finish_reason for request in requests for beam in request.beams}
    assert reasons == {"stop", "length"}


def test_no_end_id_and_one_result_is_as_in_transformers(subject: Subject, llm: MegatronLLM) -> None:
    requests = check(subject, llm, [beam_params(4, stop_token_ids=(), num_return_gen=1)])
    assert all(request.finish_reason == "length" for request in requests)


def test_lengths_and_penalties_are_as_in_transformers(subject: Subject, llm: MegatronLLM) -> None:
    params = [
        beam_params(4, min_tokens=6),
        beam_params(3, min_tokens=12, num_return_gen=2),
        beam_params(4, max_tokens=1),
        beam_params(4, max_tokens=2, length_penalty=-1.0),
        beam_params(4, repetition_penalty=1.7, early_stopping=True),
    ]
    check(subject, llm, params)
