"""Converted checkpoints: back bit for bit, loaded by transformers, with the logits of whoever made them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from kilotron.apis.convert import ConversionOptions, convert_checkpoint
from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.huggingface_config import CANDIDATES, write_huggingface_config
from kilotron.models.megatron_args import find_megatron_gaps, megatron_args
from kilotron.models.megatron_config import read_megatron_gpt
from kilotron.models.registry import read_transformer_config
from kilotron.models.structure import differences
from parity.tiny_models import CASES, TINY_MODELS, make_tiny_model

SMALL_FILES = ConversionOptions(max_shard_bytes=40_000)
MEGATRON = Path(__file__).parents[1] / "data" / "megatron"
ALL = {case.architecture for case in CASES.values()}
NUM_TOKENS = 100  # of the checkpoints there
# What real Megatron checkpoints are as Hugging Face's.
ARCHITECTURES = {
    "gpt2/torch_dist": "GPT2LMHeadModel",
    "gpt2/torch-tp2-pp2": "GPT2LMHeadModel",
    "llama/torch_dist": "LlamaForCausalLM",
    "llama/torch_dist-0.16.1": "LlamaForCausalLM",
    "llama31/torch_dist": "Qwen2ForCausalLM",
    "qwen3/torch_dist": "Qwen3ForCausalLM",
    "mixtral/torch_dist": "MixtralForCausalLM",
    "nemotron/torch_dist": "NemotronForCausalLM",
}


def _first_of_each_architecture(among: Collection[str]) -> list[Any]:
    """One model of each architecture by default, all of them in the slow suite."""
    seen: set[str] = set()
    params = []
    for name in (name for name in TINY_MODELS if CASES[name].architecture in among):
        is_new = CASES[name].architecture not in seen
        seen.add(CASES[name].architecture)
        params.append(pytest.param(name, marks=() if is_new else pytest.mark.slow))
    return params


def load_in_transformers(folder: Path, architecture: str) -> Any:
    return getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager", dtype="auto").eval()


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens[None]).logits[0].float()


@pytest.mark.filterwarnings("ignore")  # transformers comments on its own configurations
@pytest.mark.parametrize("name", _first_of_each_architecture(ALL))
def test_a_round_trip_is_bit_identical_and_loads_in_transformers(name: str, tmp_path: Path) -> None:
    make_tiny_model(name, tmp_path / "source", torch.bfloat16 if name == "llama" else torch.float32)

    convert_checkpoint(tmp_path / "source", tmp_path / "megatron", SMALL_FILES)
    report = convert_checkpoint(tmp_path / "megatron", tmp_path / "back")

    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("source", "back"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype
        assert torch.equal(value.view(torch.uint8), after[key].view(torch.uint8)), key
    assert (tmp_path / "source" / "config.json").read_text() == (tmp_path / "back" / "config.json").read_text()
    tokens = torch.arange(3, 20)
    models = [load_in_transformers(tmp_path / folder, report.architecture) for folder in ("source", "back")]
    assert torch.equal(logits_of(models[0], tokens), logits_of(models[1], tokens))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_megatrons_arguments_describe_every_model_that_megatron_can_run(name: str) -> None:
    case = CASES[name]
    values = getattr(transformers, case.config_class)(**case.fields).to_dict()
    config = read_transformer_config(values | {"architectures": [case.architecture]})

    gaps = find_megatron_gaps(config)

    read = read_megatron_gpt(ConfigFields(megatron_args(config)))
    assert bool(gaps) == bool(differences(read, config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _first_of_each_architecture(CANDIDATES))
def test_a_config_written_from_the_structure_alone_is_the_same_model_to_transformers(name: str, tmp_path: Path) -> None:
    model = make_tiny_model(name, tmp_path)
    case = CASES[name]
    structure = read_transformer_config(json.loads((tmp_path / "config.json").read_text()))
    try:
        values = write_huggingface_config(structure, case.architecture)
    except CheckpointError:
        assert "longrope" in name  # no other may be refused
        return

    config = getattr(transformers, case.config_class).from_dict(values)
    config._attn_implementation = "eager"
    written = getattr(transformers, case.architecture)(config).eval()
    written.load_state_dict(model.state_dict())

    tokens = torch.arange(3, 20)
    torch.testing.assert_close(logits_of(written, tokens), logits_of(model, tokens), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_of_the_real_megatron_gives_its_logits_in_transformers(name: str, tmp_path: Path) -> None:
    report = convert_checkpoint(MEGATRON / name, tmp_path / "converted", ConversionOptions(vocab_size=NUM_TOKENS))

    assert report.architecture == ARCHITECTURES[name]
    model = load_in_transformers(tmp_path / "converted", report.architecture)
    expected = load_file(MEGATRON / name.partition("/")[0] / "expected.safetensors")
    for number in range(3):
        wanted = expected[f"{number}.logits"][:, :NUM_TOKENS]
        found = logits_of(model, expected[f"{number}.prompt"])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
