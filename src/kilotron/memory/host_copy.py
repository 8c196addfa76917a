"""HostCopy: what some blocks of a KV cache hold, kept on the host while the cache's own memory is given back.

A cache in host memory goes into an unlinked file, so that memory is really freed; one on another device, into memory.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from io import RawIOBase
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kilotron.memory.kv_storage import KVStorage

_log = logging.getLogger(__name__)

# Copied at once: large enough for a disk's full speed, small beside any cache.
_CHUNK_BYTES = 2**24


class HostCopy(Protocol):
    """Contents of blocks, to be put back into a cache of the same shape."""

    @property
    def memory_bytes(self) -> int:
        """Host memory that the copy takes."""
        ...

    def restore(self, storage: KVStorage) -> None:
        """Writes the contents into the blocks they came from.

        Raises:
            OSError: they could not be read.
        """
        ...

    def close(self) -> None:
        """Drops the contents. Idempotent."""
        ...


def copy_to_host(storage: KVStorage, block_ids: list[int]) -> HostCopy:
    """Copies blocks out of the cache, which stays as it is.

    Raises:
        OSError: the folder for temporary files (TMPDIR) has no room, or cannot be written.
    """
    num_blocks = max(_CHUNK_BYTES // storage.shape.block_bytes, 1)
    chunks = [block_ids[first : first + num_blocks] for first in range(0, len(block_ids), num_blocks)]
    return FileCopy(storage, chunks) if storage.device_type == "cpu" else MemoryCopy(storage, chunks)


class MemoryCopy:
    """Contents as they are read."""

    def __init__(self, storage: KVStorage, chunks: list[list[int]]) -> None:
        self._contents = [(block_ids, storage.read(block_ids)) for block_ids in chunks]

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return sum(contents.numel() for _, contents in self._contents)

    def restore(self, storage: KVStorage) -> None:
        """Never fails to read."""
        for block_ids, contents in self._contents:
            storage.write(block_ids, contents)

    def close(self) -> None:
        """Drops the contents."""
        self._contents = []


class FileCopy:
    """Contents in a file without a name, which goes with the process at the latest."""

    def __init__(self, storage: KVStorage, chunks: list[list[int]]) -> None:
        self._chunks = chunks
        self._row_bytes = 0
        self._file = tempfile.TemporaryFile(prefix="kilotron-kv-", buffering=0)  # noqa: SIM115 - closed by `close`
        with ExitStack() as on_failure:
            on_failure.callback(self._file.close)
            for block_ids in chunks:
                contents = storage.read(block_ids)
                self._row_bytes = contents.shape[1]
                _write_all(self._file, contents)
            # A disk may notice only now that it is full; and only what it has can leave the page cache.
            os.fdatasync(self._file.fileno())
            on_failure.pop_all()
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.memory_bytes = self._file.tell() if _is_in_memory(self._file.fileno()) else 0
        if self.memory_bytes:
            _log.warning("temporary files are kept in memory here, so offloading frees none; set TMPDIR to a disk")

    def restore(self, storage: KVStorage) -> None:
        """Reads the file from its start."""
        self._file.seek(0)
        for block_ids, contents in zip(self._chunks, self._read(), strict=True):
            storage.write(block_ids, contents)

    def close(self) -> None:
        """Gives the disk back."""
        self._file.close()

    def _read(self) -> Iterator[Tensor]:
        for block_ids in self._chunks:
            contents = torch.empty((len(block_ids), self._row_bytes), dtype=torch.uint8)
            _read_all(self._file, contents)
            yield contents


def _write_all(file: RawIOBase, contents: Tensor) -> None:
    """Raw files may take less than they are given."""
    left: memoryview = contents.view(-1).numpy().data
    while left:
        left = left[file.write(left) or 0 :]


def _read_all(file: RawIOBase, contents: Tensor) -> None:
    left: memoryview = contents.view(-1).numpy().data
    while left:
        count = file.readinto(left)
        if not count:
            raise OSError("the file with the KV cache's contents is shorter than what was written")
        left = left[count:]


def _is_in_memory(file: int) -> bool:
    """Whether a file lies on a tmpfs."""
    device = os.fstat(file).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    fields = (line.split() for line in mounts.splitlines())
    return any(each[2] == number and "tmpfs" in each[each.index("-") + 1 :][:1] for each in fields)
