"""A checkpoint opens only when all its files agree, and gives views of them without reading the rest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.errors import BrokenCheckpointError, CheckpointError
from unit.checkpoints.written_files import safetensors_bytes, two_tensors, write_model, write_sharded_model

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def two_shards(folder: Path, **weight_map: str) -> Path:
    shards = {FIRST: {"a": torch.arange(6.0).view(2, 3)}, SECOND: {"b": torch.ones(4, dtype=torch.bfloat16)}}
    return write_sharded_model(folder, shards, **weight_map)


def complaint_about(folder: Path) -> str:
    with pytest.raises(BrokenCheckpointError) as caught:
        HuggingFaceCheckpoint.open(folder)
    return str(caught.value)


def test_folder_gives_configuration_tensors_and_size(tmp_path: Path) -> None:
    write_model(tmp_path, config='{"hidden_size": 3}')
    with HuggingFaceCheckpoint.open(str(tmp_path)) as checkpoint:
        assert checkpoint.folder == tmp_path
        assert checkpoint.config == {"hidden_size": 3}
        assert checkpoint.generation_config == {}
        assert set(checkpoint.tensors) == {"weight", "bias"}
        assert checkpoint.total_bytes == 32


def test_generation_config_is_read_when_there(tmp_path: Path) -> None:
    (write_model(tmp_path) / "generation_config.json").write_text('{"top_p": 0.9}')
    assert HuggingFaceCheckpoint.open(tmp_path).generation_config == {"top_p": 0.9}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool])
def test_tensor_reads_back_as_it_was_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = torch.arange(24).view(2, 3, 4).to(dtype)
    save_file({"x": saved}, write_model(tmp_path) / "model.safetensors")
    read = HuggingFaceCheckpoint.open(tmp_path).read("x")
    assert read.dtype == dtype
    assert torch.equal(read, saved)


def test_scalar_and_empty_tensors_read_back(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(2.5), "empty": torch.empty(0, 7)}, write_model(tmp_path) / "model.safetensors")
    checkpoint = HuggingFaceCheckpoint.open(tmp_path)
    assert checkpoint.read("scalar").item() == 2.5
    assert checkpoint.read("empty").shape == (0, 7)


def test_tensor_at_an_odd_place_in_the_file_reads_aligned(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    for spaces in range(4):
        content = safetensors_bytes(json.dumps(header) + " " * spaces, data, pad=False)
        tensor = HuggingFaceCheckpoint.open(write_model(tmp_path, content)).read("x")
        assert tensor.data_ptr() % 4 == 0
        assert tensor.tolist() == [1.5, -2.0]


def test_reads_share_one_mapping_and_never_reach_the_file(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    first, second = checkpoint.read("weight"), checkpoint.read("weight")
    assert first.data_ptr() == second.data_ptr()
    first.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == two_tensors()


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    with HuggingFaceCheckpoint.open(two_shards(tmp_path)) as checkpoint:
        tensor = checkpoint.read("a")
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_closed_checkpoint_says_so(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="is closed; open it again"):
        checkpoint.read("weight")


def test_shards_read_as_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(two_shards(tmp_path))
    assert checkpoint.read("a").shape == (2, 3)
    assert checkpoint.read("b").tolist() == [1, 1, 1, 1]
    assert checkpoint.tensors["b"].file == tmp_path / SECOND
    assert checkpoint.total_bytes == 32


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_slice_equals_the_same_slice_of_the_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = data.draw(st.lists(st.integers(0, 6), max_size=3))
    saved = torch.randn(sizes)
    folder = write_model(tmp_path_factory.mktemp("model"))
    save_file({"x": saved}, folder / "model.safetensors")
    ends = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in sizes]
    index = tuple(slice(*pair) for pair in ends)[: data.draw(st.integers(0, len(sizes)))]
    assert torch.equal(HuggingFaceCheckpoint.open(folder).read_slice("x", index), saved[index])


def test_slice_is_a_view_of_the_whole(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    columns = checkpoint.read_slice("weight", (slice(None), slice(1, 3)))
    assert columns.shape == (2, 2)
    assert columns.data_ptr() == checkpoint.read("weight").data_ptr() + 4


@pytest.mark.parametrize(
    "index",
    [(slice(0, 3),), (slice(-1, 2),), (slice(2, 1),), (slice(0, 2, 2),), (slice(0, 1), slice(0, 1), slice(0, 1))],
)
def test_slice_that_reaches_outside_is_refused(tmp_path: Path, index: tuple[slice, ...]) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    with pytest.raises(BrokenCheckpointError, match=r"tensor 'weight': expected to hold .* found shape \(2, 3\)"):
        checkpoint.read_slice("weight", index)


def test_missing_tensor_is_named_with_the_nearest(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    with pytest.raises(BrokenCheckpointError, match=r"tensor 'my\.weight': .* found none; the nearest is 'weight'"):
        checkpoint.read("my.weight")


def test_mis_shaped_and_mis_typed_tensors_are_named(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    place = r"model\.safetensors: tensor 'weight'"
    with pytest.raises(BrokenCheckpointError, match=rf"{place}: expected shape \(3, 2\), found shape \(2, 3\)"):
        checkpoint.require("weight", shape=(3, 2))
    with pytest.raises(BrokenCheckpointError, match=rf"{place}: expected dtype BF16 or F16, found dtype F32"):
        checkpoint.require("weight", dtypes={"F16", "BF16"})
    assert checkpoint.require("weight", shape=(2, 3), dtypes={"F32"}).num_bytes == 24


def test_dtype_that_torch_lacks_is_refused_when_read(tmp_path: Path) -> None:
    content = safetensors_bytes({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, bytes(2))
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path, content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'x': cannot read dtype F4"):
        checkpoint.read("x")


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "an error"), ("[]", "list []"), ("\ufeff{}", "BOM"), ("", "an error")],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_json_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, found: str) -> None:
    (two_shards(tmp_path) / name).write_text(text)
    complaint = complaint_about(tmp_path)
    assert str(tmp_path / name) in complaint
    assert found in complaint


def test_oversized_configuration_is_refused_unread(tmp_path: Path) -> None:
    with (write_model(tmp_path) / "config.json").open("wb") as stream:
        stream.truncate(10**10)
    assert "expected at most 16000000 bytes of JSON, found 10000000000 bytes" in complaint_about(tmp_path)


def test_infinity_in_a_configuration_is_a_number(tmp_path: Path) -> None:
    write_model(tmp_path, config='{"time_step_limit": [0.0, Infinity]}')
    assert HuggingFaceCheckpoint.open(tmp_path).config["time_step_limit"] == [0.0, float("inf")]


def test_generation_config_that_links_nowhere_is_named(tmp_path: Path) -> None:
    (write_model(tmp_path) / "generation_config.json").symlink_to(tmp_path / "gone")
    assert "generation_config.json: expected a readable file, found no such file" in complaint_about(tmp_path)


def test_all_missing_shards_are_named(tmp_path: Path) -> None:
    complaint = complaint_about(two_shards(tmp_path, c="third.safetensors", d="fourth.safetensors"))
    assert "expected 4 shards beside it, found 2; missing: fourth.safetensors, third.safetensors" in complaint


def test_tensor_that_is_in_no_shard_is_named(tmp_path: Path) -> None:
    complaint = complaint_about(two_shards(tmp_path, c=FIRST))
    assert f"{FIRST}: tensor 'c': expected it here, as the index says, found it in no shard" in complaint


def test_tensor_that_is_in_another_shard_is_named(tmp_path: Path) -> None:
    shards = {FIRST: {"a": torch.ones(1), "c": torch.ones(1)}, SECOND: {"b": torch.ones(1)}}
    complaint = complaint_about(write_sharded_model(tmp_path, shards, a=SECOND))
    assert f"{SECOND}: tensor 'a': expected it here, as the index says, found it in {FIRST}" in complaint


def test_tensor_in_two_shards_is_named_with_both(tmp_path: Path) -> None:
    shards = {FIRST: {"a": torch.ones(1)}, SECOND: {"a": torch.ones(1), "b": torch.ones(1)}}
    complaint = complaint_about(write_sharded_model(tmp_path, shards, a=FIRST))
    assert f"{SECOND}: tensor 'a': expected every tensor in one file, found also {tmp_path / FIRST}" in complaint


@pytest.mark.parametrize("shard", ["/etc/x.safetensors", "../x.safetensors", "a\\..\\x.safetensors", "x.bin", 7, None])
def test_shard_name_that_leaves_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    two_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    complaint = complaint_about(tmp_path)
    assert "index.json: tensor 'a': expected the name of a .safetensors file inside the folder" in complaint
    assert repr(shard) in complaint


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_without_a_map_is_named(tmp_path: Path, index: str) -> None:
    (two_shards(tmp_path) / "model.safetensors.index.json").write_text(index)
    assert "index.json: expected weight_map to map tensor names to shards" in complaint_about(tmp_path)


def test_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    index = f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'
    (two_shards(tmp_path) / "model.safetensors.index.json").write_text(index)
    assert "expected every JSON key once, found 'a' twice" in complaint_about(tmp_path)


def test_damage_in_the_last_shard_is_found_on_opening(tmp_path: Path) -> None:
    shard = two_shards(tmp_path) / SECOND
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{SECOND}: tensor 'b': expected data up to byte" in complaint_about(tmp_path)


def test_file_that_vanishes_before_it_is_read_is_named(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors: .* found no such file"):
        checkpoint.read("weight")


def test_file_that_is_replaced_before_it_is_read_is_named(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    (tmp_path / "other").write_bytes(two_tensors())
    (tmp_path / "other").replace(tmp_path / "model.safetensors")
    with pytest.raises(BrokenCheckpointError, match="expected the file that was checked, found one that has changed"):
        checkpoint.read("weight")


def test_file_that_is_cut_between_two_reads_is_named(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(write_model(tmp_path))
    checkpoint.read("weight")
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(170)
    with pytest.raises(BrokenCheckpointError, match="expected 184 bytes, as when it was opened, found 170 bytes"):
        checkpoint.read("bias")


def test_settings_of_quantization_are_left_to_whoever_loads(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "unheard-of"}}
    write_model(tmp_path, config=json.dumps(config))
    assert HuggingFaceCheckpoint.open(tmp_path).config == config


def test_opening_a_folder_imports_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    script = (
        "import sys; from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint as Checkpoint; "
        f"Checkpoint.open({str(write_model(tmp_path))!r}); print({{'torch', 'huggingface_hub'}} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "set()\n"
