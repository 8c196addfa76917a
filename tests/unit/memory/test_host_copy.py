"""What blocks of a KV cache hold survives on the host, wherever the cache lives and whatever its layout is."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kilotron.errors import EngineClosedError
from kilotron.kernels.interface import KernelBackend, KVShape
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.memory.host_copy import FileCopy, MemoryCopy, copy_to_host
from kilotron.memory.kv_storage import KVStorage
from unit.kernels.cpu_backends import ISAS, draw, make_cpu

BACKENDS = ["reference", *ISAS]
DTYPES = ["float32", "bfloat16", "int8"]
USED = [5, 1, 3]


def backend_of(name: str) -> KernelBackend:
    return ReferenceBackend() if name == "reference" else make_cpu(name)


def make_storage(kernels: KernelBackend, dtype: str = "float32", num_blocks: int = 7, **sizes: int) -> KVStorage:
    fields = {"num_layers": 2, "block_size": 8, "num_query_groups": 2, "kv_channels": 8} | sizes
    return KVStorage(KVShape(num_blocks=num_blocks, dtype=getattr(torch, dtype), **fields), kernels)


def fill(storage: KVStorage, block_ids: list[int], dtype: str) -> None:
    """Keys and values at every position of these blocks."""
    shape = storage.shape
    slots = torch.tensor([block * shape.block_size + offset for block in block_ids for offset in range(8)])
    values = draw(len(slots), 4 * shape.num_query_groups, shape.kv_channels)
    values = values.to(torch.float32 if dtype == "int8" else getattr(torch, dtype))
    storage.clear(block_ids)
    for layer in storage.layers:
        storage.kernels.rotate_and_append(values, None, None, layer, slots)


def contents(storage: KVStorage, block_ids: list[int]) -> Tensor:
    return storage.read(block_ids)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk with room for so much, as far as this process can see."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", [FileCopy, MemoryCopy])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BACKENDS)
def test_blocks_hold_the_same_bytes_in_new_memory(name: str, dtype: str, kind: type[FileCopy | MemoryCopy]) -> None:
    storage = make_storage(backend_of(name), dtype)
    fill(storage, USED, dtype)
    before = contents(storage, USED)
    assert before.any(dim=1).all()
    copy = kind(storage, [[5, 1], [3]])
    storage.release()
    storage.allocate()
    copy.restore(storage)
    copy.close()
    assert torch.equal(contents(storage, USED), before)


@pytest.mark.parametrize("name", BACKENDS)
def test_other_blocks_are_left_alone(name: str) -> None:
    storage = make_storage(backend_of(name))
    fill(storage, [1, 2, 3], "float32")
    copy = copy_to_host(storage, [2])
    fill(storage, [1, 2, 3], "float32")
    others = contents(storage, [1, 3])
    copy.restore(storage)
    assert torch.equal(contents(storage, [1, 3]), others)
    copy.close()


def test_a_cache_in_host_memory_goes_into_a_file_that_nobody_can_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage = make_storage(ReferenceBackend())
    fill(storage, [1], "float32")
    copy = copy_to_host(storage, [1])
    assert isinstance(copy, FileCopy)
    assert list(tmp_path.iterdir()) == []
    copy.close()


def test_no_blocks_are_no_problem() -> None:
    storage = make_storage(ReferenceBackend())
    copy = copy_to_host(storage, [])
    copy.restore(storage)
    copy.close()


def test_a_full_disk_is_an_error_and_leaves_no_open_file() -> None:
    storage = make_storage(ReferenceBackend(), num_blocks=65)
    num_files = len(os.listdir("/proc/self/fd"))
    with largest_file(4096), pytest.raises(OSError, match="File too large"):
        copy_to_host(storage, list(range(1, 65)))
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_released_memory_cannot_be_used() -> None:
    storage = make_storage(ReferenceBackend())
    storage.release()
    with pytest.raises(EngineClosedError, match="resume a suspended engine"):
        storage.clear([1])
