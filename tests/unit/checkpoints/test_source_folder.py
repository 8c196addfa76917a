"""Whatever is typed in place of a checkpoint, the message says what it is and what to type next."""

from pathlib import Path

import pytest

from kilotron.checkpoints.source_folder import find_checkpoint_folder
from kilotron.errors import BrokenCheckpointError, CheckpointError, CheckpointNotFoundError
from unit.checkpoints.written_files import write_model


def complaint_about(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint_folder(source)
    return str(caught.value)


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_text("{}")
    return path


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_checkpoint_folder(str(write_model(tmp_path))) == tmp_path


def test_folder_reached_by_a_link_is_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_model(tmp_path / "model"))
    assert find_checkpoint_folder(tmp_path / "link") == tmp_path / "link"


def test_tilde_means_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(write_model(tmp_path / "model").parent))
    assert find_checkpoint_folder("~/model") == tmp_path / "model"


def test_local_folder_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint_folder("owner/name") == Path("owner/name")


def test_misspelt_folder_gets_a_suggestion(tmp_path: Path) -> None:
    write_model(tmp_path / "llama-3-8b")
    with pytest.raises(CheckpointNotFoundError, match=f"did you mean {tmp_path}/llama-3-8b"):
        find_checkpoint_folder(tmp_path / "lama-3-8b")


@pytest.mark.parametrize(
    "source", ["gpt2", "a/b/c", "./owner/name", "../x", "/no/where", "owner/", "ow ner/name", "x" * 5000, "a\0b"]
)
def test_what_is_neither_folder_nor_hub_id_is_told_both(source: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no folder .* hub id of the form owner/name"):
        find_checkpoint_folder(source)


def test_empty_path_is_refused() -> None:
    assert "path is empty" in complaint_about("")


def test_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a local folder; a revision \('v1'\) goes with a hub id only"):
        find_checkpoint_folder(write_model(tmp_path), revision="v1")


def test_file_in_place_of_its_folder_is_pointed_out(tmp_path: Path) -> None:
    complaint = complaint_about(write_model(tmp_path) / "model.safetensors")
    assert f"is a file; give the folder with config.json and the weights, such as {tmp_path}" in complaint


@pytest.mark.parametrize("typed", ["", "model.Q4_K_M.gguf"])
def test_gguf_is_recognised(tmp_path: Path, typed: str) -> None:
    folder = folder_of(tmp_path, "model.Q4_K_M.gguf")
    assert "model.Q4_K_M.gguf is a GGUF file, which kilotron does not read" in complaint_about(folder / typed)


@pytest.mark.parametrize("typed", ["", "pytorch_model.bin"])
def test_pickle_is_refused_with_the_command_that_converts(tmp_path: Path, typed: str) -> None:
    complaint = complaint_about(folder_of(tmp_path, "config.json", "pytorch_model.bin") / typed)
    assert "pytorch_model.bin is a pickle file, which kilotron refuses" in complaint
    assert f"M.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}-safetensors')" in complaint


def test_pickle_beside_safetensors_does_no_harm(tmp_path: Path) -> None:
    assert find_checkpoint_folder(folder_of(write_model(tmp_path), "training_args.bin")) == tmp_path


@pytest.mark.parametrize(
    "mark", ["latest_checkpointed_iteration.txt", "iter_0000100", ".metadata", "mp_rank_00", "__0_0.distcp"]
)
def test_megatron_checkpoint_is_taken_as_it_is(tmp_path: Path, mark: str) -> None:
    assert find_checkpoint_folder(folder_of(tmp_path, mark)) == tmp_path


def test_adapter_is_recognised(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    assert "is a LoRA adapter; this version reads whole models" in complaint_about(folder)


def test_a_mistake_further_up_gets_a_suggestion_too(tmp_path: Path) -> None:
    write_model(tmp_path / "llama" / "torch")
    with pytest.raises(CheckpointNotFoundError, match=rf"did you mean {tmp_path}/llama/torch\?"):
        find_checkpoint_folder(tmp_path / "lamma" / "torch")
    with pytest.raises(CheckpointNotFoundError, match=rf"did you mean {tmp_path}/llama\?"):
        find_checkpoint_folder(tmp_path / "lamma" / "torchh")


def test_a_megatron_checkpoint_one_folder_deeper_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "run" / "iter_0000005").mkdir(parents=True)
    assert f"did you mean {tmp_path}/run?" in complaint_about(tmp_path)


def test_missing_configuration_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "model.safetensors")
    with pytest.raises(BrokenCheckpointError, match=r"config\.json: expected the model's configuration, found no such"):
        find_checkpoint_folder(folder)


def test_model_one_folder_deeper_is_suggested(tmp_path: Path) -> None:
    write_model(tmp_path / "checkpoint-500")
    assert f"did you mean {tmp_path}/checkpoint-500?" in complaint_about(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    complaint = complaint_about(folder_of(tmp_path, "config.json", "README.md"))
    assert "expected model.safetensors or model.safetensors.index.json, found no *.safetensors file" in complaint
