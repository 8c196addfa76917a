"""Tests of `kilotron convert` and `kilotron inspect`."""

import json
import shutil
from pathlib import Path

import pytest

from unit.cli.conftest import Command


def test_a_checkpoint_is_converted_and_back(command: Command, checkpoint: str, tmp_path: Path) -> None:
    there = command("convert", checkpoint, tmp_path / "megatron")
    back = command("convert", tmp_path / "megatron", tmp_path / "back", "--json")

    assert there.code == 0
    assert there.err == ""
    assert there.out.startswith("Hugging Face to Megatron (MegatronGPT): ")
    assert there.out.splitlines()[-1] == str(tmp_path / "megatron")
    assert back.objects[0]["architecture"] == "LlamaForCausalLM"
    assert back.objects[0]["folder"] == str(tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (Path(checkpoint) / "config.json").read_bytes()


def test_a_converted_checkpoint_answers_as_its_source_does(command: Command, checkpoint: str, tmp_path: Path) -> None:
    command("convert", checkpoint, tmp_path / "megatron")
    arguments = ("-p", "abc", "--temperature", "0", "--max-tokens", "6", "--json")

    answers = [command("generate", folder, *arguments).objects[0] for folder in (checkpoint, tmp_path / "megatron")]

    assert answers[0]["token_ids"] == answers[1]["token_ids"]


def test_shards_are_as_large_as_asked_for(command: Command, checkpoint: str, tmp_path: Path) -> None:
    outcome = command("convert", checkpoint, tmp_path / "megatron", "--max-shard-size", "30KB")

    assert outcome.code == 0
    files = list((tmp_path / "megatron" / "release").glob("__0_[0-9]*.distcp"))
    assert len(files) > 2


@pytest.mark.parametrize("size", ["", "5 apples", "0", "-3MB"])
def test_a_size_that_is_none_is_wrong_usage(command: Command, checkpoint: str, tmp_path: Path, size: str) -> None:
    outcome = command("convert", checkpoint, tmp_path / "out", f"--max-shard-size={size}")

    assert outcome.code == 2
    assert "--max-shard-size must be a size" in outcome.err


def test_an_existing_folder_is_an_error_and_stays(command: Command, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    outcome = command("convert", checkpoint, tmp_path / "out")

    assert outcome.code == 1
    assert "--overwrite" in outcome.err


def test_a_mistyped_format_is_wrong_usage(command: Command, checkpoint: str, tmp_path: Path) -> None:
    assert command("convert", checkpoint, tmp_path / "out", "--to", "megatorn").code == 2


def test_inspect_prints_a_page(command: Command, checkpoint: str) -> None:
    outcome = command("inspect", checkpoint)

    assert outcome.code == 0
    assert "LlamaForCausalLM" in outcome.out
    assert "model.layers.*.mlp.down_proj.weight" in outcome.out
    assert "what is odd" not in outcome.out
    assert outcome.err == ""


def test_inspect_all_has_a_line_for_each_tensor(command: Command, checkpoint: str) -> None:
    out = command("inspect", checkpoint, "--all").out

    assert "model.layers.1.mlp.down_proj.weight" in out
    assert "rope_theta" in out


def test_inspect_json_is_one_object(command: Command, checkpoint: str) -> None:
    (found,) = command("inspect", checkpoint, "--json").objects

    assert found["format"] == "huggingface"
    assert len(found["tensors"]) == 20


def test_what_is_odd_is_listed(command: Command, checkpoint: str, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "odd")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))

    out = command("inspect", folder).out

    assert "what is odd\n  - missing: model.layers.2." in out


def test_a_damaged_checkpoint_is_an_error(command: Command, checkpoint: str, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])

    outcome = command("inspect", folder)

    assert outcome.code == 1
    assert "model.safetensors" in outcome.err
