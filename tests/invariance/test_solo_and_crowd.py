"""64 different prompts alone and all together, half of them greedy, half sampled."""

import pytest
import torch

from fakes import make_llm, make_model
from kilotron.kernels.registry import choose_backend
from kilotron.sampling_params import SamplingParams

pytestmark = pytest.mark.exact_bits

NUM_PROMPTS = 64


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, 150, (NUM_PROMPTS,), generator=generator).tolist()
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_solo_is_crowd(dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype, kernels=choose_backend("auto", "cpu").backend)
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
