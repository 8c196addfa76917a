"""A T5 checkpoint written by megatron-core gives megatron-core's own logits and greedy tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kilotron.apis.llm import MegatronLLM
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.errors import CheckpointError, EmptyPromptError
from kilotron.kernels.registry import choose_backend
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.registry import read_transformer_config
from kilotron.models.weight_loading import load_weights
from kilotron.sampling_params import SamplingParams
from unit.kernels.cpu_backends import ISAS

FOLDER = Path(__file__).parents[1] / "data" / "megatron" / "t5"
NUM_TOKENS = 99
TOLERANCE = 1e-4  # of the largest logit


class Expected(NamedTuple):
    """What megatron-core computed for one prompt."""

    encoder_prompt: list[int]
    prompt: list[int]
    logits: Tensor
    greedy: list[int]


def expected_of_megatron() -> list[Expected]:
    tensors = load_file(FOLDER / "expected.safetensors")
    numbers = sorted({name.split(".")[0] for name in tensors})
    return [
        Expected(
            tensors[f"{n}.encoder_prompt"].tolist(),
            tensors[f"{n}.prompt"].tolist(),
            tensors[f"{n}.logits"],
            tensors[f"{n}.greedy"].tolist(),
        )
        for n in numbers
    ]


@pytest.fixture(scope="module", params=["cpu", "reference"] if ISAS else ["reference"])
def llm(request: pytest.FixtureRequest) -> Iterator[MegatronLLM]:
    with MegatronCheckpoint.open(FOLDER / "torch_dist") as checkpoint:
        config = read_transformer_config(checkpoint.config, checkpoint.tensors)
        model = EncoderDecoderModel(config, choose_backend(request.param, "cpu").backend)
        assert load_weights(model, checkpoint, torch.float32) == []
    with MegatronLLM(model, block_size_tokens=8, buffer_size_gb=0.01) as llm:
        yield llm


def test_scores_of_the_decoders_prompt_are_megatrons(llm: MegatronLLM) -> None:
    expected = expected_of_megatron()
    params = SamplingParams(num_tokens_to_generate=0, return_log_probs=True)
    prompts, encoder_prompts = [one.prompt for one in expected], [one.encoder_prompt for one in expected]
    requests = llm.generate(prompts, params, encoder_prompts=encoder_prompts)
    for request, one in zip(requests, expected, strict=True):
        wanted = one.logits.double().log_softmax(-1)[range(4), one.prompt[1:]]
        error = (torch.tensor(request.prompt_log_probs) - wanted).abs().max() / one.logits.abs().max()
        assert error < TOLERANCE


def test_greedy_tokens_are_megatrons(llm: MegatronLLM) -> None:
    expected = expected_of_megatron()
    length = len(expected[0].greedy)
    params = SamplingParams(
        temperature=0.0, max_tokens=length, ignore_eos=True, allowed_token_ids=list(range(NUM_TOKENS))
    )
    prompts, encoder_prompts = [one.prompt for one in expected], [one.encoder_prompt for one in expected]
    requests = llm.generate(prompts, params, encoder_prompts=encoder_prompts)
    assert [request.generated_tokens for request in requests] == [one.greedy for one in expected]


def test_a_decoder_without_a_known_start_wants_a_prompt(llm: MegatronLLM) -> None:
    with pytest.raises(EmptyPromptError, match="does not say what its decoder begins with"):
        llm.generate([[5, 6, 7]])


def test_positions_that_are_not_implemented_are_named() -> None:
    with MegatronCheckpoint.open(FOLDER / "torch_dist") as checkpoint:
        config = dict(checkpoint.config) | {"position_embedding_type": "rope"}
    with pytest.raises(CheckpointError, match="position_embedding_type = 'rope'"):
        read_transformer_config(config)
