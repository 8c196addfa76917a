"""Megatron's files are pickles. None of them ever runs code, and what is wrong with them is named."""

import argparse
import builtins
import contextlib
import functools
import importlib
import os
import pickle
import random
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from kilotron.checkpoints.damage import shown
from kilotron.checkpoints.inert_values import Inert
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.restricted_unpickler import read_pickle
from kilotron.errors import BrokenCheckpointError, CheckpointError
from unit.checkpoints.written_megatron import ARGS, model_tensors, stacked, write_dist, write_legacy, write_rank

CANARY = "canary"
QKV = "decoder.layers.self_attention.linear_qkv.weight"


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        """Never called; only what can be called may stand where a function is pickled."""


def payloads() -> dict[str, Any]:
    """Objects that create the canary when they are unpickled in the ordinary way."""
    code = f"open({CANARY!r}, 'w').close()"
    touch = f"touch {CANARY}"
    return {
        "os.system": Reduced(os.system, touch),
        "subprocess": Reduced(subprocess.check_call, ["touch", CANARY]),
        "exec": Reduced(builtins.exec, code),
        "eval": Reduced(builtins.eval, code),
        "getattr": Reduced(Reduced(getattr, Reduced(importlib.import_module, "os"), "system"), touch),
        "partial": Reduced(Reduced(functools.partial, os.system, touch)),
        "map": Reduced(list, Reduced(map, os.system, [touch])),
        "state": Reduced(Reduced(functools.partial, print, state=(os.system, (touch,), {}, {}))),
        "in a state": Reduced(argparse.Namespace, state={"num_layers": Reduced(os.system, touch)}),
        "as a key": {Reduced(os.system, touch): 1},
        "pickle.loads": Reduced(pickle.loads, pickle.dumps(Reduced(os.system, touch))),
    }


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def open_and_read(folder: Path) -> str:
    """What is said about a checkpoint when all of it is read; nothing when it is in order."""
    try:
        with MegatronCheckpoint.open(folder) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", payloads())
def test_each_payload_works_on_who_unpickles_it(name: str) -> None:
    with contextlib.suppress(TypeError):  # what it leaves behind may be no use any more
        pickle.loads(pickle.dumps(payloads()[name]))
    assert Path(CANARY).exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", payloads())
def test_no_pickle_runs_code(name: str, protocol: int) -> None:
    with contextlib.suppress(BrokenCheckpointError):
        read_pickle(pickle.dumps(payloads()[name], protocol), file=Path("x"))
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("name", payloads())
@pytest.mark.parametrize("place", [".metadata", "common.pt", "common_state", "piece", "legacy"])
def test_no_file_of_a_checkpoint_runs_code(tmp_path: Path, place: str, name: str) -> None:
    payload = payloads()[name]
    args = {**ARGS, "extra": payload}
    folder = tmp_path / "iter_0000005"
    tensors = stacked(model_tensors(num_layers=1))
    if place == "legacy":
        write_rank(folder / "mp_rank_00", {"embedding.word_embeddings.weight": payload}, args)  # type: ignore[dict-item]
    else:
        write_dist(folder, tensors, args=args, has_common_file=place != "common_state")
    if place == ".metadata":
        (folder / ".metadata").write_bytes(pickle.dumps(payload))
    if place == "piece":
        torch.save(payload, folder / "evil.distcp")
        edit_metadata(
            folder, functools.partial(move_pieces, QKV, "evil.distcp", 0, (folder / "evil.distcp").stat().st_size)
        )
    open_and_read(folder)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    "data",
    [
        b"ios\nsystem\n(S'touch canary'\nR.",  # a class by the oldest opcodes
        b"(ios\nsystem\n.",
        b"(cos\nsystem\nS'touch canary'\no.",
        b"cos\nsystem\n(S'touch canary'\ntR.",
        b"\x80\x02\x82\x01.",  # an extension
        b"\x80\x02\x84\x01\x00\x00\x00.",
        b"Ptouch canary\n.",  # a reference to something outside
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"\x80\x05\x97.",  # a buffer outside
        b"\x80\x02K\x01)R.",  # a call of a number
        b"\x80\x02ccollections\nOrderedDict\n}b.",  # a change of the class itself
        b"\x80\x02ctorch\nfloat32\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x03\x00\x00\x00pop\x86R.",
        b"\x80\x04\x8c\x01\n\x8c\x01b\x93",
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02h\x00.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        b"\x80\x02" + b"(" * 50,
        b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".",
    ],
)
def test_what_torch_never_writes_is_refused(data: bytes) -> None:
    with pytest.raises(
        BrokenCheckpointError, match=r"^x: expected a pickle of plain values, found .* at byte \d+ of it"
    ):
        read_pickle(data, file=Path("x"))
    assert not Path(CANARY).exists()


def test_a_huge_memo_index_takes_no_memory() -> None:
    assert read_pickle(b"\x80\x02K\x07r\xff\xff\xff\x7f.", file=Path("x")) == 7


@pytest.mark.parametrize("step", [b"\x85", b"q\x010]h\x01a", b"q\x010}K\x01h\x01s", b"q\x010h\x00h\x01\x85R"])
def test_deep_nesting_does_no_harm(step: bytes) -> None:
    depth = 100_000
    assert read_pickle(b"\x80\x02cmodule\nname\nq\x00" + step * depth + b".", file=Path("x")) is not None
    with pytest.raises(BrokenCheckpointError, match="found a tuple as a key"):
        read_pickle(b"\x80\x02}cmodule\nname\nq\x00" + b"\x85" * depth + b"Ns.", file=Path("x"))


MANY = b"(" + b"N" * 10_000 + b"t\x94"


@pytest.mark.parametrize(
    ("start", "step"),
    [
        (b"cmodule\nname\n\x94" + MANY, b"h\x00h\x01}K\x01K\x01s\x92"),  # arguments copied for each keyword
        (b"ctorch\nSize\n\x94(" + b"N" * 10_000 + b"l\x94", b"h\x00h\x01\x85R"),
        (b"\x8c\xff" + b"m" * 255 + b"\x94\x8c\xff" + b"n" * 255 + b"\x94", b"h\x00h\x01\x93"),
        (b"cpathlib\nPosixPath\n\x94X\xff\x0f\x00\x00" + b"p" * 4095 + b"\x94", b"h\x00h\x01\x85R"),
        pytest.param(b"", b"\x8f" * 200, marks=pytest.mark.slow),  # sets, which take 200 bytes each
        pytest.param(b"N", b"\x94" * 300, marks=pytest.mark.slow),  # entries of the memo
    ],
)
def test_few_opcodes_cannot_make_much(start: bytes, step: bytes) -> None:
    with pytest.raises(BrokenCheckpointError, match="found more than 30000000 steps"):
        read_pickle(b"\x80\x04" + start + step * 60_000 + b".", file=Path("x"))


@pytest.mark.parametrize("item", [b"", b"\x85"])
def test_keys_that_all_have_one_hash_are_refused(item: bytes) -> None:
    multiples = (number * (2**61 - 1) for number in range(1, 100))
    keys = b"".join(b"\x8a\x0b" + number.to_bytes(11, "little") + item + b"N" for number in multiples)
    with pytest.raises(BrokenCheckpointError, match="found a key above"):
        read_pickle(b"\x80\x02}(" + keys + b"u.", file=Path("x"))


def test_the_key_of_a_storage_is_short() -> None:
    key = b"X\x00\x10\x00\x00" + b"k" * 4096
    data = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"NK\x00tQ."
    with pytest.raises(BrokenCheckpointError, match="outside that is not a torch storage"):
        read_pickle(data, file=Path("x"), find_storage=lambda *_: pytest.fail("looked for it"))


def test_a_message_about_a_value_without_end_is_short() -> None:
    value: list[Any] = ["x" * 1000] * 10
    for _ in range(20):
        value = [value] * 10
    assert len(shown(value)) < 250


def test_a_class_that_is_not_known_stays_inert() -> None:
    value = read_pickle(pickle.dumps(Reduced(os.system, "touch canary")), file=Path("x"))
    assert isinstance(value, Inert)
    assert (value.name.rpartition(".")[2], value.arguments) == ("system", ("touch canary",))


def test_values_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    folder = write_dist(
        tmp_path / "c", {"embedding.word_embeddings.weight": torch.ones(2)}, args={"a": endless}, has_common_file=True
    )
    assert "expected plain saved arguments, found values nested deeper than" in open_and_read(folder)


def test_values_that_multiply_are_refused(tmp_path: Path) -> None:
    value: list[Any] = ["x"] * 10
    for _ in range(9):
        value = [value] * 10
    folder = write_dist(
        tmp_path / "c", {"embedding.word_embeddings.weight": torch.ones(2)}, args={"a": value}, has_common_file=True
    )
    assert "more than 200000 of them" in open_and_read(folder)


def test_sets_that_multiply_are_refused(tmp_path: Path) -> None:
    folder = write_dist(
        tmp_path / "c", {"embedding.word_embeddings.weight": torch.ones(2)}, args={"a": [set(range(1000))] * 300},
        has_common_file=True,
    )  # fmt: skip
    assert "more than 200000 of them" in open_and_read(folder)


@pytest.mark.parametrize("name", [".metadata", "common.pt", "metadata.json", "model_optim_rng.pt", "tracker"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_is_never_opened(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "iter_0000005"
    if name == "model_optim_rng.pt":
        write_legacy(folder, model_tensors())
    else:
        write_dist(folder, stacked(model_tensors()), has_common_file=True)
    places = {
        "tracker": tmp_path / "latest_checkpointed_iteration.txt",
        "model_optim_rng.pt": folder / "mp_rank_00" / name,
    }
    file = places.get(name, folder / name)
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    assert f"{file}: expected a file, found a folder or device" in open_and_read(
        tmp_path if name == "tracker" else folder
    )


def test_a_weight_with_more_values_than_bytes_is_refused(tmp_path: Path) -> None:
    write_rank(tmp_path / "mp_rank_00", {"embedding.word_embeddings.weight": torch.zeros(1).expand(2**40)}, ARGS)
    assert "expected a value for each place, found shape (1099511627776,) with strides (0,)" in open_and_read(tmp_path)


# Damage to torch_dist.


def edit_metadata(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes what `.metadata` says, with torch's own classes."""
    file = folder / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))


def move_pieces(name: str, file: str, offset: int, length: int, metadata: Any) -> None:
    for index, place in metadata.storage_data.items():
        if index.fqn == name:
            place.relative_path, place.offset, place.length = file, offset, length


def change_chunks(change: Callable[[list[ChunkStorageMetadata]], object], metadata: Any) -> None:
    change(metadata.state_dict_metadata[QKV].chunks)


def change_place(values: dict[str, Any], metadata: Any) -> None:
    for index, place in metadata.storage_data.items():
        if index.fqn == QKV:
            for name, value in values.items():
                setattr(place, name, value)


def change_tensor(values: dict[str, Any], metadata: Any) -> None:
    for name, value in values.items():
        setattr(metadata.state_dict_metadata[QKV], name, value)


def overlap(chunks: list[ChunkStorageMetadata]) -> None:
    chunks.append(chunks[0])


def gap(chunks: list[ChunkStorageMetadata]) -> None:
    chunks[0].sizes = torch.Size([4, 16, 4])


def outside(chunks: list[ChunkStorageMetadata]) -> None:
    chunks[0].sizes = torch.Size([4, 16, 80])


def elsewhere(chunks: list[ChunkStorageMetadata]) -> None:
    chunks[0].offsets = torch.Size([0, 0, 1])


def fewer_axes(chunks: list[ChunkStorageMetadata]) -> None:
    chunks[0].sizes = torch.Size([4, 16])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (functools.partial(change_chunks, overlap), "fill shape (4, 16, 8) exactly, found two pieces at (0, 0, 0)"),
        (functools.partial(change_chunks, gap), "found no piece at (0, 0, 4)"),
        (functools.partial(change_chunks, list.clear), "found no piece at (0, 0, 0)"),
        (functools.partial(change_chunks, outside), "expected at least"),
        (functools.partial(change_chunks, elsewhere), "found no place for the piece at (0, 0, 1)"),
        (functools.partial(change_chunks, fewer_axes), "found a piece of shape (4, 16) at (0, 0, 0)"),
        (functools.partial(change_tensor, {"size": torch.Size([4, 16, 9])}), "found no piece at (0, 0, 8)"),
        (functools.partial(change_tensor, {"size": (2**62, 2**62, 8)}), "a shape that memory can address"),
        (functools.partial(change_tensor, {"size": (-4, 16, 8)}), "found a shape that is not a tuple"),
        (functools.partial(change_tensor, {"size": None}), "expected offsets and sizes"),
        (functools.partial(change_tensor, {"chunks": {}}), "expected a list of pieces"),
        (functools.partial(change_tensor, {"properties": None}), "expected a dtype of torch"),
        (functools.partial(change_place, {"offset": 10**9}), "the file is truncated"),
        (functools.partial(change_place, {"offset": -1}), "expected offsets and sizes"),
        (functools.partial(change_place, {"length": 100}), "found 100 bytes in place of the piece at (0, 0, 0)"),
        (functools.partial(change_place, {"relative_path": "gone.distcp"}), "gone.distcp: tensor"),
        (functools.partial(change_place, {"relative_path": "../x"}), "a file beside it, found '../x'"),
        (functools.partial(change_place, {"relative_path": "/etc/passwd"}), "expected the name of a file beside it"),
        (functools.partial(change_place, {"relative_path": "."}), "found '.'"),
        (functools.partial(change_place, {"transform_descriptors": ["zstd"]}), "expected bytes as they are"),
        (lambda metadata: setattr(metadata, "storage_data", None), "expected a dict of places"),
        (lambda metadata: setattr(metadata, "state_dict_metadata", []), "expected a dict of all tensors"),
        (lambda metadata: metadata.storage_data.pop(MetadataIndex(QKV, (0, 0, 0))), "no place for the piece at"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Callable[[Any], Any], complaint: str
) -> None:
    folder = write_dist(tmp_path / "iter_0000005", stacked(model_tensors()), has_common_file=True)
    edit_metadata(folder, change)
    said = open_and_read(folder)
    assert complaint in said
    assert str(folder) in said
    if "dict of" not in complaint and "gone" not in complaint:
        assert QKV in said


def test_bytes_of_two_tensors_are_refused(tmp_path: Path) -> None:
    folder = write_dist(tmp_path / "c", stacked(model_tensors()), has_common_file=True)
    edit_metadata(folder, functools.partial(change_place, {"offset": 1}))
    assert "expected to begin at byte" in open_and_read(folder)


def add_names(names: list[str], metadata: Any) -> None:
    for index, place in list(metadata.storage_data.items()):
        if index.fqn == QKV:
            metadata.storage_data |= {MetadataIndex(name, index.offset): place for name in names}
            metadata.state_dict_metadata |= dict.fromkeys(names, metadata.state_dict_metadata[QKV])


def test_a_tensor_has_two_names_at_most(tmp_path: Path) -> None:
    two, three = (
        write_dist(tmp_path / name, stacked(model_tensors()), has_common_file=True) for name in ("two", "three")
    )
    edit_metadata(two, functools.partial(add_names, ["a.weight"]))
    edit_metadata(three, functools.partial(add_names, ["a.weight", "b.weight"]))

    with MegatronCheckpoint.open(two) as checkpoint:
        assert checkpoint.tensors["a.weight"].shape == (4, 16, 8)
    assert "expected to begin at byte" in open_and_read(three)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(4, 16, 8, dtype=torch.float64), "F64 (4, 16, 8)"),
        (torch.zeros(16, 4, 8), "F32 (16, 4, 8)"),
        ([torch.zeros(4, 16, 8)], "a list"),
    ],
)
def test_a_piece_that_is_not_what_metadata_says_is_refused_by_name(tmp_path: Path, value: Any, found: str) -> None:
    folder = write_dist(tmp_path / "c", stacked(model_tensors()), has_common_file=True)
    torch.save(value, folder / "other.distcp")
    edit_metadata(
        folder, functools.partial(move_pieces, QKV, "other.distcp", 0, (folder / "other.distcp").stat().st_size)
    )
    said = open_and_read(folder)
    assert f"other.distcp: tensor '{QKV}': expected F32 (4, 16, 8) at byte 0, as .metadata says, found {found}" in said


def test_a_truncated_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder = write_dist(tmp_path / "c", stacked(model_tensors()), has_common_file=True)
    (file,) = folder.glob("*.distcp")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(
        BrokenCheckpointError, match=r"\.distcp: tensor '.*': expected at least \d+ bytes, found \d+ bytes; the"
    ):
        MegatronCheckpoint.open(folder)


# Damage to legacy files.


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "c", model_tensors(), tensor=2, pipeline=2)
    shutil.rmtree(folder / "mp_rank_01_001")
    assert "mp_rank_01_001/model_optim_rng.pt: expected 2 tensor-parallel by 2 pipeline ranks" in open_and_read(folder)


def test_one_rank_too_many_is_named(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "c", model_tensors(), tensor=2)
    shutil.copytree(folder / "mp_rank_00", folder / "mp_rank_02")
    assert "mp_rank_02/model_optim_rng.pt" in open_and_read(folder)


def test_an_absurd_number_of_ranks_is_refused_at_once(tmp_path: Path) -> None:
    write_rank(tmp_path / "mp_rank_00", {}, ARGS | {"tensor_model_parallel_size": 10**15})
    assert "mp_rank_01/model_optim_rng.pt: expected 1000000000000000 tensor-parallel" in open_and_read(tmp_path)


@pytest.mark.parametrize("value", [-1, "2", 1.5, True, [2]])
def test_a_number_of_ranks_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    write_rank(tmp_path / "mp_rank_00", {}, ARGS | {"tensor_model_parallel_size": value})
    assert "expected a count as saved argument tensor_model_parallel_size" in open_and_read(tmp_path)


def test_ranks_of_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "c", model_tensors(), tensor=2)
    shutil.rmtree(folder / "mp_rank_01")
    write_rank(folder / "mp_rank_01", {"embedding.word_embeddings.weight": torch.ones(3, 8)}, ARGS)
    said = open_and_read(folder)
    assert "mp_rank_01/model_optim_rng.pt: tensor 'embedding.word_embeddings.weight': expected F32 (16, 8)" in said


def rewritten(
    file: Path, change: Callable[[str, bytes], bytes | None], *, compression: int = zipfile.ZIP_STORED
) -> None:
    """The same zip, each entry changed, or left out."""
    with zipfile.ZipFile(file) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, content in entries.items():
            if (changed := change(name.partition("/")[2], content)) is not None:
                new.writestr(name, changed)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda name, content: None if name == "data/0" else content, "none in place of a storage data/0 of"),
        (lambda name, content: content[:-1] if name == "data/0" else content, "in place of a storage data/0 of"),
        (lambda name, content: None if name == "data.pkl" else content, "no data.pkl"),
        (lambda name, content: b"big" if name == "byteorder" else content, "byte order b'big', not little"),
    ],
)
def test_a_damaged_archive_is_refused(
    tmp_path: Path, change: Callable[[str, bytes], bytes | None], complaint: str
) -> None:
    folder = write_legacy(tmp_path / "c", model_tensors())
    rewritten(folder / "mp_rank_00" / "model_optim_rng.pt", change)
    said = open_and_read(folder)
    assert "mp_rank_00/model_optim_rng.pt: expected a " in said
    assert complaint in said


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "c", model_tensors())
    rewritten(
        folder / "mp_rank_00" / "model_optim_rng.pt", lambda _, content: content, compression=zipfile.ZIP_DEFLATED
    )
    assert "compressed, which torch never does" in open_and_read(folder)


def test_entries_over_each_other_are_refused(tmp_path: Path) -> None:
    folder = write_legacy(tmp_path / "c", model_tensors())
    file = folder / "mp_rank_00" / "model_optim_rng.pt"
    content = bytearray(file.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    struct.pack_into("<I", content, second + 42, 0)  # the second entry of the directory, at the place of the first
    file.write_bytes(content)
    assert "over another one" in open_and_read(folder)


@pytest.mark.parametrize("name", ["common.pt", ".metadata"])
def test_an_empty_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = write_dist(tmp_path / "c", stacked(model_tensors()), has_common_file=True)
    (folder / name).write_bytes(b"")
    assert f"{name}: expected " in open_and_read(folder)


def test_a_file_of_an_old_torch_gets_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "mp_rank_00"
    folder.mkdir()
    torch.save({"model": {}}, folder / "model_optim_rng.pt", _use_new_zipfile_serialization=False)
    assert "found a file of torch before 1.6; torch.load and torch.save it again" in open_and_read(tmp_path)


# Damage of any kind.

NUM_DAMAGES = 60


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, or the end cut off, or both."""
    changed = bytearray(content)
    for _ in range(chance.choice([0, 1, 1, 3, 10])):
        changed[chance.randrange(len(changed))] = chance.choice([0, 255, chance.randrange(256)])
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.3 else changed)


@pytest.mark.parametrize(
    "file", [".metadata", "common.pt", "*.distcp", "common_state", "model_optim_rng.pt", "metadata.json"]
)
def test_damage_anywhere_is_harmless_or_refused_as_a_broken_checkpoint(tmp_path: Path, file: str) -> None:
    tensors = model_tensors(num_layers=1)
    if file == "model_optim_rng.pt":
        folder = write_legacy(tmp_path / "c", model_tensors(), pipeline=4)
    else:
        folder = write_dist(tmp_path / "c", stacked(tensors), has_common_file=file != "common_state")
    (victim, *_) = sorted(folder.rglob("*.distcp" if file == "common_state" else file))
    content = victim.read_bytes()
    chance = random.Random(11)
    num_refused = 0
    for _ in range(NUM_DAMAGES):
        victim.write_bytes(damaged(content, chance))
        num_refused += bool(open_and_read(folder))
    assert num_refused > NUM_DAMAGES // 6
