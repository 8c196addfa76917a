"""Tests of what is told of a checkpoint without reading weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kilotron.apis.convert import convert_checkpoint
from kilotron.apis.inspection import inspect_checkpoint
from unit.cli.tiny_checkpoint import write_tiny_checkpoint

MEGATRON = Path(__file__).parents[2] / "data" / "megatron"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def changed(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint with other tensors (None removes one) or other fields of config.json."""

    def change(tensors: dict[str, torch.Tensor | None] | None = None, **config: Any) -> Path:
        folder = shutil.copytree(source, tmp_path / "changed")
        weights: dict[str, Any] = {**load_file(folder / "model.safetensors"), **(tensors or {})}
        kept = {name: value for name, value in weights.items() if value is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return change


def oddities(folder: Path) -> str:
    return "\n".join(inspect_checkpoint(folder).oddities)


def test_a_sound_checkpoint_has_nothing_odd(source: Path) -> None:
    found = inspect_checkpoint(source)

    assert found.oddities == []
    assert (found.format, found.architecture, found.vocab_size) == ("huggingface", "LlamaForCausalLM", 258)
    assert found.structure["num_query_groups"] == 2
    assert found.num_bytes == 4 * found.num_parameters
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_equal_tensors_of_all_layers_are_one_group(source: Path) -> None:
    groups = {group.name: group for group in inspect_checkpoint(source).groups()}

    group = groups["model.layers.*.mlp.gate_proj.weight"]
    assert (group.num_tensors, group.shape, group.num_bytes) == (2, (48, 32), 2 * 48 * 32 * 4)
    assert groups["model.norm.weight"].num_tensors == 1


def test_missing_and_unused_and_mis_shaped_tensors_are_named(changed: Callable[..., Path]) -> None:
    folder = changed(
        {
            "model.norm.weight": None,
            "vision.weight": torch.ones(2),
            "model.layers.0.mlp.up_proj.weight": torch.ones(47, 32),
        }
    )

    told = oddities(folder)

    assert "missing: model.norm.weight" in told
    assert "not used by the model: vision.weight" in told
    assert "model.layers.0.mlp.up_proj.weight has shape (47, 32), not (48, 32)" in told


def test_several_dtypes_are_told_and_one_that_config_json_does_not_name(changed: Callable[..., Path]) -> None:
    assert "1 of BF16" in oddities(changed({"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)}))


def test_a_dtype_other_than_config_json_says_is_told(changed: Callable[..., Path]) -> None:
    assert "config.json says bfloat16, but the weights are float32" in oddities(changed(torch_dtype="bfloat16"))


def test_a_padded_vocabulary_is_told(changed: Callable[..., Path]) -> None:
    folder = changed({"model.embed_tokens.weight": torch.ones(300, 32)}, vocab_size=300)

    assert "300 rows for the tokenizer's 258 tokens" in oddities(folder)


def test_an_output_weight_beside_a_tied_table_is_told(changed: Callable[..., Path]) -> None:
    assert "lm_head.weight is stored although it is tied" in oddities(changed({"lm_head.weight": torch.ones(258, 32)}))


def test_an_unknown_architecture_is_no_reason_not_to_look(changed: Callable[..., Path]) -> None:
    found = inspect_checkpoint(changed(architectures=["MambaForCausalLM"]))

    assert found.structure == {}
    assert found.num_parameters > 0
    assert "MambaForCausalLM is not implemented" in "\n".join(found.oddities)


def test_no_tokenizer_is_told(source: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))

    assert "no tokenizer was found" in oddities(bare)
    assert inspect_checkpoint(bare, tokenizer=str(source)).vocab_size == 258


@pytest.mark.parametrize(
    ("name", "format_name"),
    [("llama/torch_dist", "torch_dist"), ("llama/torch_dist-0.16.1", "torch_dist"), ("gpt2/torch-tp2-pp2", "torch")],
)
def test_every_megatron_layout_is_told(name: str, format_name: str) -> None:
    found = inspect_checkpoint(MEGATRON / name)

    assert (found.format, found.iteration, found.architecture) == (format_name, 1, "MegatronGPT")
    assert found.config["num_layers"] == 2
    assert not any("missing" in oddity or "not used" in oddity for oddity in found.oddities)


def test_an_encoder_decoder_is_told_as_any_other() -> None:
    found = inspect_checkpoint(MEGATRON / "t5" / "torch_dist")

    assert found.architecture == "MegatronT5"
    assert not any("missing" in oddity or "no option" in oddity for oddity in found.oddities)


def test_paths_of_the_training_machine_are_told() -> None:
    told = oddities(MEGATRON / "llama" / "torch_dist")

    assert "save = /data/checkpoints/llama/torch_dist: a path of the machine that trained" in told


def test_a_model_that_megatron_itself_cannot_run_is_told(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "odd")
    values = json.loads((folder / "config.json").read_text()) | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(values))
    convert_checkpoint(folder, tmp_path / "megatron")

    found = inspect_checkpoint(tmp_path / "megatron")

    assert "megatron-core has no option for rotary scaling of the kind dynamic" in "\n".join(found.oddities)
    assert "hf_config_json" not in found.config


def test_a_description_is_plain_json(source: Path) -> None:
    described = json.loads(json.dumps(inspect_checkpoint(source).describe()))

    assert described["tensors"][0].keys() == {"name", "shape", "dtype", "num_bytes", "file"}
    assert described["folder"] == str(source)
