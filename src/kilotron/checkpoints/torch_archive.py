"""Reads what torch.save wrote, a zip of one pickle and its storages, in a file or in a part of one.

Finds every storage by its place, so that tensors stay in the file until they are asked for.
"""

import io
import zipfile
from typing import Any

from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.inert_values import RefusedPickleError, StorageType, StoredStorage
from kilotron.checkpoints.mapped_file import MappedFile
from kilotron.checkpoints.restricted_unpickler import MAX_PICKLE_BYTES, read_pickle
from kilotron.checkpoints.safetensors_file import DTYPE_OF_TORCH_NAME
from kilotron.checkpoints.safetensors_header import BITS_OF_DTYPE
from kilotron.errors import BrokenCheckpointError

MAX_DIRECTORY_BYTES = 32_000_000
ZIP_START = b"PK\x03\x04"
OLD_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LOCAL_HEADER_BYTES = 30


def read_torch_archive(file: MappedFile, offset: int = 0, num_bytes: int | None = None) -> Any:
    """The value that torch.save wrote into `num_bytes` of a file (all by default) from `offset` on, tensors left there.

    Raises:
        BrokenCheckpointError: it is truncated, damaged, or not what torch.save writes.
        CheckpointError: it is of a torch before 1.6, or of a big-endian machine.
    """
    size = file.identity.num_bytes - offset if num_bytes is None else num_bytes
    start = file.read_bytes(offset, min(size, len(OLD_TORCH_START)))
    if start == OLD_TORCH_START:
        remedy = "a file of torch before 1.6; torch.load and torch.save it again, in a place where that is safe"
        raise broken(file.file, expected="a file of torch 1.6 or later", found=remedy)
    if not start.startswith(ZIP_START):
        raise broken(file.file, expected=f"a file of torch.save at byte {offset}", found="something else")
    try:
        return _Archive(file, offset, size).load()
    except BrokenCheckpointError:
        raise
    # zipfile raises these for damaged directories; RuntimeError for what its versions do not know.
    except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, LookupError, EOFError, OSError) as error:
        found = f"an error ({type(error).__name__}: {shown(str(error))})"
    except (RefusedPickleError, MemoryError) as error:
        found = str(error) or "a directory larger than memory"
    raise broken(file.file, expected=f"a whole file of torch.save at byte {offset}", found=found)


class _Archive:
    """One zip, its entries checked: stored as they are, within the bytes given, none over another."""

    def __init__(self, file: MappedFile, offset: int, num_bytes: int) -> None:
        self.file = file
        self.offset, self.num_bytes = offset, num_bytes
        self.entries: dict[str, tuple[int, int]] = {}
        """Name without the archive's own -> first byte in the file, and number of bytes."""
        with zipfile.ZipFile(_Window(file, offset, num_bytes)) as directory:
            end = directory.start_dir
            infos = sorted(directory.infolist(), key=lambda info: info.header_offset)
        position = 0
        for info in infos:
            start = self._data_start(info, position)
            position = start + info.file_size
            if position > end:
                raise RefusedPickleError(f"entry {shown(info.filename)} outside of it")
            name = info.filename.partition("/")[2]
            if name in self.entries:
                raise RefusedPickleError(f"entry {shown(info.filename)} twice")
            self.entries[name] = (offset + start, info.file_size)

    def _data_start(self, info: zipfile.ZipInfo, end_of_previous: int) -> int:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise RefusedPickleError(f"entry {shown(info.filename)} compressed, which torch never does")
        if info.header_offset < end_of_previous:
            raise RefusedPickleError(f"entry {shown(info.filename)} over another one")
        header = self.file.read_bytes(self.offset + info.header_offset, LOCAL_HEADER_BYTES)
        if len(header) < LOCAL_HEADER_BYTES or not header.startswith(ZIP_START):
            raise RefusedPickleError(f"no header of entry {shown(info.filename)}")
        name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes

    def load(self) -> Any:
        if "byteorder" in self.entries and (order := self._read("byteorder")) != b"little":
            raise RefusedPickleError(f"byte order {shown(order[:20])}, not little")
        if "data.pkl" not in self.entries:
            raise RefusedPickleError("no data.pkl")
        return read_pickle(self._read("data.pkl"), file=self.file.file, find_storage=self._find_storage)

    def _read(self, name: str) -> bytes:
        start, num_bytes = self.entries[name]
        if num_bytes > MAX_PICKLE_BYTES:
            raise RefusedPickleError(f"{name} of {num_bytes} bytes")
        return self.file.read_bytes(start, num_bytes)

    def _find_storage(self, kind: StorageType, key: str, num_elements: int) -> StoredStorage:
        start, num_bytes = self.entries.get(f"data/{key}", (0, -1))
        needed = num_elements * BITS_OF_DTYPE[DTYPE_OF_TORCH_NAME[kind.dtype]] // 8
        if num_bytes != needed:
            found = "none" if num_bytes < 0 else f"one of {num_bytes}"
            raise RefusedPickleError(f"{found} in place of a storage data/{key[:100]} of {needed} bytes")
        return StoredStorage(self.file, start, num_elements, kind.dtype)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own, for the zip module."""

    def __init__(self, file: MappedFile, offset: int, num_bytes: int) -> None:
        self._file, self._offset, self._num_bytes = file, offset, num_bytes
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        if base + offset < 0:
            raise ValueError("a place before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._num_bytes - self._position, 0)
        count = left if size < 0 else min(size, left)
        if count > MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {count} bytes")
        part = self._file.read_bytes(self._offset + self._position, count)
        self._position += len(part)
        return part
