"""Checkpoints that the real megatron-core wrote give its own logits and greedy tokens.

`data/megatron/README.md` says what they are and what is special about each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kilotron.apis.llm import MegatronLLM
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from parity.model_runner import ModelRunner
from unit.kernels.cpu_backends import ISAS

DATA = Path(__file__).parents[1] / "data" / "megatron"
FOLDERS = [str(file.parent.relative_to(DATA)) for file in sorted(DATA.glob("*/*/latest_checkpointed_iteration.txt"))]
ENCODER_DECODERS = [folder for folder in FOLDERS if folder.startswith("t5/")]
DECODERS = [folder for folder in FOLDERS if folder not in ENCODER_DECODERS]
KERNELS = ("cpu", "reference") if ISAS else ("reference",)
NUM_TOKENS = 99  # the rows of the tables behind them are padding
NUM_STEPS = 8
TOLERANCE = 1e-5  # of the largest logit, in float32; the other kind of gelu is 1e-4 off
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True, logprobs=0)

on_all_kernels = pytest.mark.parametrize("kernels", KERNELS)


class Expected(NamedTuple):
    """What Megatron computed for one prompt; logits of the real vocabulary only."""

    prompt: list[int]
    greedy: list[int]
    logits: Tensor
    encoder_prompt: list[int]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_expected(folder: str) -> list[Expected]:
    tensors = load_file(DATA / folder.split("/")[0] / "expected.safetensors")
    return [
        Expected(
            prompt=tensors[f"{number}.prompt"].tolist(),
            greedy=tensors[f"{number}.greedy"].tolist(),
            logits=tensors[f"{number}.logits"][:, :NUM_TOKENS],
            encoder_prompt=tensors.get(f"{number}.encoder_prompt", torch.empty(0)).tolist(),
        )
        for number in range(3)
    ]


def generate(folder: str, kernels: str, prompts: list[list[int]], **more: Any) -> list[InferenceRequest]:
    options = {"dtype": "float32", "block_size_tokens": 8, "buffer_size_gb": 0.01, "kernels": kernels}
    with MegatronLLM(DATA / folder, **options) as llm:
        return llm.generate(prompts, GREEDY, **more)


def test_every_kind_of_checkpoint_is_there() -> None:
    assert len(FOLDERS) == 42
    assert len(ENCODER_DECODERS) == 3


@on_all_kernels
@pytest.mark.parametrize("folder", DECODERS)
def test_logits_are_those_of_megatron(folder: str, kernels: str) -> None:
    runner = ModelRunner.of(open_checkpoint(DATA / folder), kernels=kernels)
    for number, expected in enumerate(read_expected(folder)):
        logits = runner.run_in_chunks(number, expected.prompt, [7, 1, 16])[:, :NUM_TOKENS]
        error = (logits - expected.logits).abs().max() / expected.logits.abs().max()
        assert error < TOLERANCE, f"prompt {number}: relative error {error:.2e}"


@on_all_kernels
@pytest.mark.parametrize("folder", DECODERS)
def test_greedy_tokens_are_those_of_megatron(folder: str, kernels: str) -> None:
    expected = read_expected(folder)
    requests = generate(folder, kernels, [one.prompt for one in expected])
    assert [request.generated_tokens for request in requests] == [one.greedy for one in expected]


@on_all_kernels
@pytest.mark.parametrize("folder", ENCODER_DECODERS)
def test_an_encoder_decoders_tokens_and_log_probs_are_those_of_megatron(folder: str, kernels: str) -> None:
    expected = read_expected(folder)
    encoder_prompts = [one.encoder_prompt for one in expected]
    requests = generate(folder, kernels, [one.prompt for one in expected], encoder_prompts=encoder_prompts)
    assert [request.generated_tokens for request in requests] == [one.greedy for one in expected]
    for request, one in zip(requests, expected, strict=True):
        log_probs = one.logits[-NUM_STEPS:].double().log_softmax(-1)[range(NUM_STEPS), one.greedy]
        error = (torch.tensor(request.generated_log_probs or []) - log_probs).abs().max()
        assert error < TOLERANCE * one.logits.abs().max()
