"""Megatron's checkpoints, encoder-decoders and beam search on a GPU, on the reference kernels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: nothing was tested on a device"),
]

DATA = Path(__file__).parents[1] / "data" / "megatron"
FAMILIES = ("deepseek", "gpt2", "gptoss", "llama", "llama31", "mixtral", "moe-sigmoid", "nemotron", "qwen3", "t5")
PROMPTS = ["Once upon a time", "The little fox"]


def generate(
    device: str, model: Path | None, prompts: list[Any], params: SamplingParams, **more: Any
) -> list[InferenceRequest]:
    with MegatronLLM(model, device=device, kernels="reference", dtype="float32", buffer_size_gb=0.1) as llm:
        return llm.generate(prompts, params, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_on_the_gpu_are_those_of_megatron(family: str) -> None:
    folder = DATA / family / ("torch-release" if family == "llama31" else "torch_dist")
    tensors = load_file(folder.parent / "expected.safetensors")
    prompts, greedy = ([tensors[f"{number}.{what}"].tolist() for number in range(3)] for what in ("prompt", "greedy"))
    more = {}
    if "0.encoder_prompt" in tensors:
        more["encoder_prompts"] = [tensors[f"{number}.encoder_prompt"].tolist() for number in range(3)]

    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    requests = generate("cuda", folder, prompts, params, **more)

    assert [request.generated_tokens for request in requests] == greedy


def test_beams_on_the_gpu_are_those_of_the_cpu() -> None:
    params = SamplingParams(beam_width=4, num_return_gen=4, max_tokens=24)
    on_cpu, on_gpu = generate("cpu", None, PROMPTS, params), generate("cuda", None, PROMPTS, params)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert [beam.token_ids for beam in ours.beams] == [beam.token_ids for beam in theirs.beams]
        assert [beam.score for beam in ours.beams] == pytest.approx([beam.score for beam in theirs.beams], abs=1e-3)
