"""The whole engine on a GPU, on the reference kernels, against the same engine on the CPU."""

import pytest
import torch

from kilotron.apis.llm import MegatronLLM
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: nothing was tested on a device"),
]

PROMPTS = ["Once upon a time", "The little fox", "2 + 3 =", "In the morning"]


def generate(device: str, params: SamplingParams, **options: int | float | str) -> list[InferenceRequest]:
    with MegatronLLM(device=device, kernels="reference", dtype="float32", buffer_size_gb=0.1, **options) as llm:
        return llm.generate(PROMPTS, params)


@pytest.mark.parametrize("options", [{}, {"max_tokens": 5, "block_size_tokens": 4}], ids=["plain", "chunked"])
def test_greedy_tokens_on_the_gpu_are_those_of_the_cpu(options: dict[str, int]) -> None:
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=48, return_log_probs=True)
    on_cpu, on_gpu = generate("cpu", params, **options), generate("cuda", params, **options)
    assert [r.error for r in on_gpu] == [None] * len(PROMPTS)
    assert [r.generated_tokens for r in on_gpu] == [r.generated_tokens for r in on_cpu]
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert ours.generated_log_probs == pytest.approx(theirs.generated_log_probs, abs=1e-3)
        assert ours.prompt_log_probs == pytest.approx(theirs.prompt_log_probs, abs=1e-3)


def test_sampling_on_the_gpu_repeats_itself() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, top_k=40, seed=1, num_tokens_to_generate=32)
    first, second = generate("cuda", params), generate("cuda", params)
    assert [r.generated_tokens for r in first] == [r.generated_tokens for r in second]
