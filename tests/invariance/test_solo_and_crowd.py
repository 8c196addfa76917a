"""64 different prompts alone and all together, half of them greedy, half sampled."""

from typing import Any

import pytest
import torch

from fakes import make_llm, make_model
from invariance.test_same_bits import MODELS
from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.sampling_params import SamplingParams
from unit.kernels.cpu_backends import ISAS, make_cpu

NUM_PROMPTS = 64


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, 150, (NUM_PROMPTS,), generator=generator).tolist()
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def assert_solo_is_crowd(kernels: KernelBackend, dtype: torch.dtype, **fields: Any) -> None:
    model = make_model(dtype=dtype, kernels=kernels, **fields)
    params = [
        SamplingParams(temperature=number % 2, seed=number, max_tokens=24, ignore_eos=True, return_log_probs=True)
        for number in range(NUM_PROMPTS)
    ]
    with make_llm(model, max_requests=64) as llm:
        crowd = llm.generate(prompts(), params)
    with make_llm(model, enable_prefix_caching=False) as llm:
        solo = [llm.generate([prompt], one)[0] for prompt, one in zip(prompts(), params, strict=True)]
    assert [request.generated_tokens for request in crowd] == [request.generated_tokens for request in solo]
    assert [request.generated_log_probs for request in crowd] == [request.generated_log_probs for request in solo]
    assert [request.prompt_log_probs for request in crowd] == [request.prompt_log_probs for request in solo]


@pytest.mark.exact_bits
@pytest.mark.slow
def test_solo_is_crowd_on_the_reference() -> None:
    assert_solo_is_crowd(ReferenceBackend(), torch.float32)


@pytest.mark.parametrize("isa", ISAS[:1])
def test_solo_is_crowd(isa: str) -> None:
    assert_solo_is_crowd(make_cpu(isa), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_solo_is_crowd_for_every_model(isa: str, name: str, dtype: torch.dtype) -> None:
    assert_solo_is_crowd(make_cpu(isa), dtype, **MODELS[name])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("isa", ISAS)
def test_solo_is_crowd_on_two_threads(isa: str) -> None:
    assert_solo_is_crowd(make_cpu(isa, 2), torch.bfloat16)
