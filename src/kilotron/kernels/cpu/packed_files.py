"""CpuPackedFiles: packed weights in a file that is mapped, so that a start copies nothing and processes share memory.

A file is the magic, the length of a JSON header, the header, and at the offsets that it names what the native module
wrote of each matrix. Knows nothing of checkpoints, nor of when a file is out of date.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec

from kilotron.errors import KernelError
from kilotron.kernels.interface import PackedExperts, PackedLinear

_MAGIC = b"kilopack"
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 64 << 20
# Matrices begin where a huge page may begin too, once the file system has some.
_ALIGNMENT = 4096


class CpuExperts(NamedTuple):
    """Packed matrices, one of each kind for each expert."""

    gate_up: Sequence[PackedLinear]
    down: Sequence[PackedLinear]


class _StoredMatrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a matrix lies, counted from the first one, and what the native module says of it."""

    offset: Annotated[int, msgspec.Meta(ge=0)]
    format: str
    activation: str | None
    is_gated: bool
    clamp: float | None
    linear_offset: float
    outputs: int
    inputs: int
    num_groups: int
    has_bias: bool


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_bytes: int
    """Of the matrices."""
    weights: dict[str, Annotated[list[_StoredMatrix], msgspec.Meta(min_length=1)]]
    """A single matrix, or those of experts: first all gates, then as many others."""


class CpuPackedFiles:
    """`PackedFiles` of the CPU backend.

    Args:
        native: the compiled module, whose layout the files have.
    """

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    @property
    def layout(self) -> str:
        """Of panels and of the file around them."""
        return f"cpu {self._native.PACKED_LAYOUT}.2"

    def write(self, path: Path, weights: Mapping[str, PackedLinear | PackedExperts]) -> int:
        """Readable by the owner only; it has its name when all of it is on the disk."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                size = _write_all(file, weights)
                os.fsync(handle)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        return size

    def open(self, path: Path) -> dict[str, PackedLinear | PackedExperts]:
        """Nothing of the file is read but its header; the system brings the rest as it is touched."""
        mapped = self._native.MappedFile.open(str(path))
        try:
            with path.open("rb") as file:
                header, first = _read_header(file)
            if header.num_bytes != mapped.num_bytes - first:
                raise ValueError(f"it has {mapped.num_bytes - first} bytes of weights, not {header.num_bytes}")
            return {name: self._map(mapped, first, matrices) for name, matrices in header.weights.items()}
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise KernelError(f"{path} is no file of packed weights: {error}; delete it") from error

    def _map(self, mapped: Any, first: int, matrices: Sequence[_StoredMatrix]) -> PackedLinear | PackedExperts:
        found = []
        for matrix in matrices:
            facts = msgspec.structs.asdict(matrix)
            found.append(self._native.map_packed(mapped, first + facts.pop("offset"), **facts))
        return found[0] if len(found) == 1 else CpuExperts(found[: len(found) // 2], found[len(found) // 2 :])


def _write_all(file: BinaryIO, weights: Mapping[str, PackedLinear | PackedExperts]) -> int:
    """Offsets count from behind the header."""
    described: dict[str, list[_StoredMatrix]] = {name: [] for name in weights}
    offset = 0
    placed = []
    for name, packed in weights.items():
        for matrix in _matrices_of(packed):
            described[name].append(_StoredMatrix(offset, **matrix.describe()))
            placed.append((offset, matrix))
            offset = _aligned(offset + matrix.stored_bytes)
    header = msgspec.json.encode(_Header(offset, described))
    first = _aligned(len(_MAGIC) + _LENGTH_BYTES + len(header))
    file.truncate(first + offset)
    file.write(_MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header)
    for place, matrix in placed:
        file.seek(first + place)  # which flushes, too
        matrix.write_to(file.fileno())
    return first + offset


def _read_header(file: BinaryIO) -> tuple[_Header, int]:
    """The header, and where the weights begin. ValueError or MsgspecError for what is none."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin like one")
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"its header would have {length} bytes")
    return msgspec.json.decode(file.read(length), type=_Header), _aligned(len(_MAGIC) + _LENGTH_BYTES + length)


def _matrices_of(packed: PackedLinear | PackedExperts) -> Iterator[PackedLinear]:
    if isinstance(packed, CpuExperts):
        yield from packed.gate_up
        yield from packed.down
    else:
        yield packed


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
