"""Hands out the tensors of one checked safetensors file as views of its memory map: no copy, no read ahead of use.

Pages of the map count as the process's memory from their first touch. They are given back as soon as nobody holds their
tensor any more: a file whose tensors are read, packed and let go in turn takes no more memory than the largest of them.

Own mapping rather than the library's `safe_open`: it costs 3 us a tensor, not 15 (1000 tensors, torch 2.13), it maps
files larger than memory, and it can be held to the very file whose header was checked.
"""

import mmap
import sys
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from kilotron.checkpoints.damage import broken, unreadable
from kilotron.checkpoints.safetensors_header import FileIdentity, SafetensorsHeader
from kilotron.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# Without this flag (which the mmap module does not name before 3.13) Linux counts a private writable map as memory
# that it must be able to give, and refuses a file larger than that.
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0

TORCH_NAME_OF_DTYPE = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip


class SafetensorsFile:
    """The tensors of one file. They stay valid after `close`; the map goes when the last of them goes."""

    def __init__(self, header: SafetensorsHeader) -> None:
        self.header = header
        self._mapping: mmap.mmap | None = None
        self._num_held: Counter[str] = Counter()
        """How many reads of a tensor somebody still holds."""

    def read(self, name: str) -> "torch.Tensor":
        """The tensor as a view of the file. Writing to it is allowed and never reaches the file; what was written may
        be lost once nobody holds the tensor any more.

        Raises:
            BrokenCheckpointError: the file changed or vanished since its header was checked.
            CheckpointError: torch has no dtype for it.
        """
        import torch

        info = self.header.tensors[name]
        if info.dtype not in TORCH_NAME_OF_DTYPE:
            known = ", ".join(TORCH_NAME_OF_DTYPE)
            raise CheckpointError(f"{info.file}: tensor {name!r}: cannot read dtype {info.dtype}; readable are {known}")
        dtype: torch.dtype = getattr(torch, TORCH_NAME_OF_DTYPE[info.dtype])
        mapping = self._checked_mapping()
        if info.num_bytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        offset = self.header.offsets[name]
        if offset % dtype.itemsize:
            # Odd header lengths are legal; vector loads want aligned data, so this one tensor is copied.
            misaligned = torch.frombuffer(mapping, dtype=torch.uint8, count=info.num_bytes, offset=offset)
            return misaligned.clone().view(dtype).view(info.shape)
        window = memoryview(mapping)[offset : offset + info.num_bytes]  # lives as long as the tensor's memory is in use
        self._num_held[name] += 1
        weakref.finalize(window, self._let_go, name, mapping).atexit = False
        return torch.frombuffer(window, dtype=dtype).view(info.shape)

    def drop_pages(self) -> None:
        """Gives back the memory of tensors that are still held; it is read from the file again at the next touch.

        What was written to them is lost.
        """
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._mapping = None

    def _let_go(self, name: str, mapping: mmap.mmap) -> None:
        self._num_held[name] -= 1
        if self._num_held[name] == 0:
            offset = self.header.offsets[name]
            # Whole pages only: those at the ends hold parts of the neighbours too.
            first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (offset + self.header.tensors[name].num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _checked_mapping(self) -> mmap.mmap:
        """The map of the checked file. A file cut short after this look kills the process at the next touch."""
        if self._mapping is None:
            self._mapping = self._map()
        expected = self.header.identity.num_bytes
        if (found := self._mapping.size()) != expected:
            raise broken(self.header.file, expected=f"{expected} bytes, as when it was opened", found=f"{found} bytes")
        return self._mapping

    def _map(self) -> mmap.mmap:
        file = self.header.file
        try:
            with file.open("rb") as stream:
                if FileIdentity.of(stream.fileno()) != self.header.identity:
                    raise broken(file, expected="the file that was checked", found="one that has changed since")
                flags = mmap.MAP_PRIVATE | MAP_NORESERVE
                return mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise unreadable(file, error) from error
