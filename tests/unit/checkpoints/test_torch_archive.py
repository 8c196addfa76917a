"""What torch.save and pickle write reads as the same values, without torch.load and without pickle."""

import argparse
import collections
import pickle
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kilotron.checkpoints.inert_values import Inert, StoredTensor
from kilotron.checkpoints.mapped_file import FileIdentity, MappedFile
from kilotron.checkpoints.restricted_unpickler import read_pickle
from kilotron.checkpoints.safetensors_file import TORCH_NAME_OF_DTYPE
from kilotron.checkpoints.torch_archive import read_torch_archive
from unit.checkpoints.written_megatron import model_tensors, stacked, write_dist

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
KEY_INTEGERS = st.integers(-(2**32), 2**32)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | KEY_INTEGERS, inner)
        | st.sets(KEY_INTEGERS | st.text())
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
    ),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol), file=Path("x")) == value


class Color(Enum):
    RED = 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_are_told_by_name_and_content(protocol: int) -> None:
    value = {
        "args": argparse.Namespace(a=1, path=Path("/a/b")),
        "color": Color.RED,
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "default": collections.defaultdict(list, {"x": [1]}),
        "device": torch.device("cpu"),
    }
    read = read_pickle(pickle.dumps(value, protocol), file=Path("x"))
    assert (read["args"].name, read["args"].state) == ("argparse.Namespace", {"a": 1, "path": "/a/b"})
    assert (read["size"], read["dtype"], read["default"]) == ((2, 3), "bfloat16", {"x": [1]})
    assert isinstance(read["color"], Inert)
    assert read["color"].arguments == (1,)
    assert read["device"].name == "torch.device"


def saved(folder: Path, value: Any) -> Any:
    file = folder / "saved.pt"
    torch.save(value, file)
    return read_torch_archive(MappedFile(file, FileIdentity.of(file)))


@pytest.mark.parametrize("name", TORCH_NAME_OF_DTYPE.values())
def test_tensors_of_every_dtype_are_read(tmp_path: Path, name: str) -> None:
    bits = torch.arange(64, dtype=torch.uint8) % 2
    tensor = bits.view(getattr(torch, name)).view(2, -1)
    read = saved(tmp_path, {"x": tensor})["x"]
    assert isinstance(read, StoredTensor)
    assert torch.equal(read.view().view(torch.uint8), tensor.view(torch.uint8))


BASE = torch.arange(24.0).view(4, 6)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE, BASE.t(), BASE[1:3], BASE[:, ::2], BASE[2, 3], BASE[:0], torch.tensor(1.5), BASE.expand(2, 4, 6),
        torch.nn.Parameter(BASE),
    ],
)  # fmt: skip
def test_views_are_read_as_they_are(tmp_path: Path, tensor: Tensor) -> None:
    read = saved(tmp_path, tensor).view()
    assert (read.shape, read.stride()) == (tensor.shape, tensor.stride())
    assert torch.equal(read, tensor)


def test_a_tensor_with_attributes_is_read(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(BASE.clone())
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    assert torch.equal(saved(tmp_path, [parameter])[0].view(), BASE)


def test_tensors_that_share_a_storage_share_their_place(tmp_path: Path) -> None:
    first, second = saved(tmp_path, [BASE, BASE[2:]])
    assert second.offset - first.offset == 2 * 6 * 4


def test_an_archive_inside_a_file_is_found_by_its_place(tmp_path: Path) -> None:
    torch.save([BASE], tmp_path / "inner")
    inner = (tmp_path / "inner").read_bytes()
    (tmp_path / "outer").write_bytes(b"before!" + inner + b"after")
    outer = MappedFile(tmp_path / "outer", FileIdentity.of(tmp_path / "outer"))
    (tensor,) = read_torch_archive(outer, 7, len(inner))
    assert torch.equal(tensor.view(), BASE)


def test_opening_a_checkpoint_imports_no_torch(tmp_path: Path) -> None:
    folder = write_dist(tmp_path / "c", stacked(model_tensors()), has_common_file=False)
    code = (
        "import sys; from kilotron.checkpoints.megatron import MegatronCheckpoint; "
        f"MegatronCheckpoint.open({str(folder)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
