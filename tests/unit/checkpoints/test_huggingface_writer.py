"""Tests of written safetensors files: the library reads them."""

import io
from math import prod
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from kilotron.checkpoints.huggingface_writer import shard_file_name, write_safetensors, write_shard_index
from kilotron.checkpoints.output_tensor import DigestingStream, OutputTensor
from kilotron.checkpoints.shard_index import read_shard_index

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8, "I64": torch.int64}
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def output(name: str, values: torch.Tensor) -> OutputTensor:
    dtype = next(name for name, one in DTYPES.items() if one == values.dtype)
    return OutputTensor(name, dtype, tuple(values.shape), lambda: values)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=5))
def test_the_library_reads_any_tensors_back(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    values = {name: torch.arange(prod(shape)).to(DTYPES[dtype]).view(shape) for name, (dtype, shape) in tensors.items()}
    stream = io.BytesIO()

    write_safetensors(DigestingStream(stream), [output(name, value) for name, value in values.items()])

    read = load(stream.getvalue())
    assert read.keys() == values.keys()
    assert all(read[name].dtype == value.dtype and torch.equal(read[name], value) for name, value in values.items())


def test_a_transposed_tensor_is_written_in_its_own_order(tmp_path: Path) -> None:
    values = torch.arange(6.0).view(2, 3).t()

    with (tmp_path / "model.safetensors").open("wb") as file:
        write_safetensors(DigestingStream(file), [output("a", values)])

    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], values)


def test_the_index_names_the_shard_of_each_tensor(tmp_path: Path) -> None:
    write_shard_index(tmp_path, {shard_file_name(i, 2): [output(f"t{i}", torch.ones(3))] for i in range(2)})

    found = read_shard_index(tmp_path / "model.safetensors.index.json")
    assert {name: file.name for name, file in found.items()} == {
        "t0": "model-00001-of-00002.safetensors",
        "t1": "model-00002-of-00002.safetensors",
    }


def test_the_digest_is_that_of_all_bytes() -> None:
    stream = DigestingStream(io.BytesIO())
    stream.write(b"ab")
    stream.write(memoryview(b"c"))

    assert stream.num_bytes == 3
    assert stream.hexdigest().startswith("ba7816bf")
