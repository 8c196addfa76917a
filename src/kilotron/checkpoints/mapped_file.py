"""Hands out parts of one file as views of its memory map: no copy, no read ahead of use. Knows no file format.

Pages of the map count as the process's memory from their first touch. They are given back as soon as nobody holds their
part any more: a file whose tensors are read, packed and let go in turn takes no more memory than the largest of them.
"""

import mmap
import os
import stat
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kilotron.checkpoints.damage import broken, unreadable

if TYPE_CHECKING:
    import torch

# Without this flag (which the mmap module does not name before 3.13) Linux counts a private writable map as memory
# that it must be able to give, and refuses a file larger than that.
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
MAX_MAPPED = 200  # of one checkpoint's files at a time: a map keeps its file open, and a process may open about 1000


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Tells whether a path still leads to the file that was checked."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, file: int | Path) -> Self:
        """Of a path or of an open file's descriptor. Raises OSError."""
        status = os.stat(file)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class MappedFile:
    """Parts of one file. They stay valid after `close`; the map goes when the last of them goes."""

    def __init__(
        self, file: Path, identity: FileIdentity, on_mapped: "Callable[[MappedFile], None] | None" = None
    ) -> None:
        """`on_mapped(file)` is called when it is mapped, which is at the first read."""
        self.file = file
        self.identity = identity
        self._on_mapped = on_mapped
        self._mapping: mmap.mmap | None = None
        self._num_held: Counter[tuple[int, int]] = Counter()
        """How many reads of a part, (offset, bytes), somebody still holds."""

    def read(self, offset: int, num_bytes: int, dtype: "torch.dtype") -> "torch.Tensor":
        """A flat tensor of the bytes from `offset` on, which must be in the file, as a view of it. Writing to it is
        allowed and never reaches the file; what was written may be lost once nobody holds the tensor any more.

        Raises:
            BrokenCheckpointError: the file changed or vanished since it was checked.
        """
        import torch

        mapping = self._checked_mapping()
        if num_bytes == 0:
            return torch.empty(0, dtype=dtype)
        if offset % dtype.itemsize:
            # Legal, if rare; vector loads want aligned data, so this one tensor is copied.
            misaligned = torch.frombuffer(mapping, dtype=torch.uint8, count=num_bytes, offset=offset)
            return misaligned.clone().view(dtype)
        window = memoryview(mapping)[offset : offset + num_bytes]  # lives as long as the tensor's memory is in use
        self._num_held[offset, num_bytes] += 1
        weakref.finalize(window, self._let_go, offset, num_bytes, mapping).atexit = False
        return torch.frombuffer(window, dtype=dtype)

    def read_bytes(self, offset: int, num_bytes: int) -> bytes:
        """A copy of the bytes from `offset` on, as many as the file has. Raises as `read`."""
        return self._checked_mapping()[offset : offset + num_bytes]

    def drop_pages(self) -> None:
        """Gives back the memory of tensors that are still held; it is read from the file again at the next touch.

        What was written to them is lost.
        """
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._mapping = None

    def _let_go(self, offset: int, num_bytes: int, mapping: mmap.mmap) -> None:
        self._num_held[offset, num_bytes] -= 1
        if self._num_held[offset, num_bytes] == 0:
            del self._num_held[offset, num_bytes]
            # Whole pages only: those at the ends hold parts of the neighbours too.
            first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (offset + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _checked_mapping(self) -> mmap.mmap:
        """The map of the checked file. A file cut short after this look kills the process at the next touch."""
        mapping = self._mapping
        if mapping is None:
            mapping = self._mapping = self._map()
            if self._on_mapped is not None:
                self._on_mapped(self)
        expected = self.identity.num_bytes
        if (found := mapping.size()) != expected:
            raise broken(self.file, expected=f"{expected} bytes, as when it was opened", found=f"{found} bytes")
        return mapping

    def _map(self) -> mmap.mmap:
        try:
            with self.file.open("rb") as stream:
                if FileIdentity.of(stream.fileno()) != self.identity:
                    raise broken(self.file, expected="the file that was checked", found="one that has changed since")
                if self.identity.num_bytes == 0:
                    raise broken(self.file, expected="content", found="an empty file")
                flags = mmap.MAP_PRIVATE | MAP_NORESERVE
                return mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise unreadable(self.file, error) from error


class MappedFiles:
    """All files of a checkpoint that was written by many ranks."""

    def __init__(self) -> None:
        self._files: dict[Path, MappedFile] = {}
        self._mapped: deque[MappedFile] = deque()

    def open(self, file: Path, *, tensor: str | None = None) -> MappedFile:
        """The file, with its identity as it was when it was first asked for. `tensor` is for messages.

        Raises:
            BrokenCheckpointError: it is missing, or no file.
        """
        if file not in self._files:
            try:
                if not stat.S_ISREG(file.stat().st_mode):
                    raise broken(file, tensor=tensor, expected="a file", found="a folder or device")
                self._files[file] = MappedFile(file, FileIdentity.of(file), self._note_mapped)
            except OSError as error:
                raise unreadable(file, error, tensor=tensor) from error
        return self._files[file]

    def drop_pages(self) -> None:
        """As `MappedFile.drop_pages`, for all of them."""
        for file in self._mapped:
            file.drop_pages()

    def close(self) -> None:
        while self._mapped:
            self._mapped.popleft().close()

    def _note_mapped(self, file: MappedFile) -> None:
        self._mapped.append(file)
        if len(self._mapped) > MAX_MAPPED:
            self._mapped.popleft().close()
