"""Whatever folder of a Megatron checkpoint is named, the iteration meant is found, or a message says what is there."""

import json
from pathlib import Path

import pytest

from kilotron.checkpoints.megatron_folder import find_megatron_folder, is_megatron_folder
from kilotron.checkpoints.source_folder import find_checkpoint_folder
from kilotron.errors import BrokenCheckpointError, CheckpointError


def written(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"sharded_backend": "torch_dist"}) if name == "metadata.json" else "")
    return folder


def torch_dist(folder: Path) -> Path:
    return written(folder, ".metadata", "metadata.json", "__0_0.distcp", "common.pt")


def tracker(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(text)
    return folder


def test_the_tracker_names_the_iteration(tmp_path: Path) -> None:
    for number in (100, 200, 300):
        torch_dist(tmp_path / f"iter_{number:07d}")
    found = find_megatron_folder(tracker(tmp_path, "200\n"))
    assert (found.folder.name, found.iteration, found.format) == ("iter_0000200", 200, "torch_dist")


def test_without_a_tracker_the_newest_is_taken(tmp_path: Path) -> None:
    for number in (9, 10_000_000, 200):
        torch_dist(tmp_path / f"iter_{number:07d}")
    assert find_megatron_folder(tmp_path).iteration == 10_000_000


def test_a_tracker_of_a_missing_iteration_says_which_there_are(tmp_path: Path) -> None:
    for number in (100, 300):
        torch_dist(tmp_path / f"iter_{number:07d}")
    with pytest.raises(
        BrokenCheckpointError,
        match=r"expected iter_0000200 beside it, .* found no such folder; there are: iter_0000100, iter_0000300",
    ):
        find_megatron_folder(tracker(tmp_path, "200"))


@pytest.mark.parametrize("text", ["", "latest", "-1", "1.5", "../../etc", "9" * 90, "\u0663"])
def test_a_tracker_of_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BrokenCheckpointError, match="expected an iteration's number or 'release'"):
        find_megatron_folder(tracker(tmp_path, text))


def test_a_release_is_found(tmp_path: Path) -> None:
    written(tmp_path, "release/mp_rank_00/model_optim_rng.pt")
    for folder in (tmp_path, tracker(tmp_path, "release"), tmp_path / "release"):
        found = find_megatron_folder(folder)
        assert (found.folder.name, found.iteration, found.format) == ("release", None, "torch")


def test_an_iteration_may_be_named_itself(tmp_path: Path) -> None:
    assert find_megatron_folder(torch_dist(tmp_path / "iter_0000100")).iteration == 100


def test_nemo_keeps_weights_in_a_folder_of_their_own(tmp_path: Path) -> None:
    torch_dist(tmp_path / "weights")
    assert is_megatron_folder(tmp_path)
    assert find_megatron_folder(tmp_path).folder == tmp_path / "weights"


def test_metadata_alone_is_torch_dcp(tmp_path: Path) -> None:
    assert find_megatron_folder(written(tmp_path, ".metadata", "__0_0.distcp")).format == "torch_dcp"


def test_zarr_gets_a_remedy(tmp_path: Path) -> None:
    written(tmp_path, "common.pt", "embedding.word_embeddings.weight/.zarray")
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(CheckpointError, match=r"is a zarr checkpoint, .* save it with --ckpt-format torch_dist"):
        find_megatron_folder(tmp_path)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    written(tmp_path, "metadata.json", "__0_0.distcp")
    with pytest.raises(
        BrokenCheckpointError, match=r"\.metadata: expected the list of all tensors, found no such file"
    ):
        find_megatron_folder(tmp_path)


@pytest.mark.parametrize("inner", ["mp_rank_00", "mp_rank_00/model_optim_rng.pt"])
def test_a_part_of_a_checkpoint_leads_to_its_folder(tmp_path: Path, inner: str) -> None:
    written(tmp_path, "mp_rank_00/model_optim_rng.pt")
    with pytest.raises(CheckpointError, match=f"part of a Megatron checkpoint; give its folder, {tmp_path}$"):
        find_checkpoint_folder(tmp_path / inner)


def test_other_folders_are_none(tmp_path: Path) -> None:
    assert not is_megatron_folder(written(tmp_path, "config.json", "model.safetensors", "metadata.json", "README.md"))
    assert not is_megatron_folder(tmp_path / "gone")
