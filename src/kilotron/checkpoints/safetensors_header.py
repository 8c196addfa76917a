"""Reads and checks the header of a safetensors file: 8 bytes of length, JSON, then tensors without gap or overlap.

Touches no tensor data and needs no torch, so that every shard of a large checkpoint is checked in moments.
"""

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from kilotron.checkpoints.damage import broken, shown, unreadable
from kilotron.checkpoints.json_file import parse_json_object
from kilotron.checkpoints.mapped_file import FileIdentity

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 64
MAX_COUNT = 2**63
LFS_POINTER_START = b"version "  # no confusion: read as a length these bytes exceed every limit

BITS_OF_DTYPE = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is, as its file's header says. `dtype` is the format's name, such as "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The checked header of one file."""

    file: Path
    identity: FileIdentity
    tensors: dict[str, TensorInfo]
    offsets: dict[str, int]  # tensor name -> first byte in the file


def read_safetensors_header(file: Path) -> SafetensorsHeader:
    """Reads the header of `file` and checks it against itself and the file's size.

    Raises:
        BrokenCheckpointError: the file is missing, truncated, or its header is not one; says which tensor is wrong.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise broken(file, expected="a file", found="a folder or device")
        with file.open("rb") as stream:
            identity = FileIdentity.of(stream.fileno())
            start = stream.read(LENGTH_BYTES)
            if start == LFS_POINTER_START:
                raise broken(file, expected="tensors", found="a Git LFS pointer; run `git lfs pull` in its folder")
            header_bytes = _header_length(file, start, identity.num_bytes)
            text = stream.read(header_bytes)
    except OSError as error:
        raise unreadable(file, error) from error
    if len(text) != header_bytes:
        raise broken(file, expected=f"a header of {header_bytes} bytes", found=f"{len(text)} bytes")
    entries = parse_json_object(text, file=file, unique_keys=True)
    _check_metadata(file, entries.pop("__metadata__", None))
    spans = sorted((_parse_entry(file, name, entry) for name, entry in entries.items()), key=_by_place)
    data_start = LENGTH_BYTES + header_bytes
    _check_spans(file, spans, data_start, identity.num_bytes)
    return SafetensorsHeader(
        file=file,
        identity=identity,
        tensors={span.name: span.info for span in spans},
        offsets={span.name: data_start + span.begin for span in spans},
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """One tensor and the bytes it claims, counted from the start of the data."""

    name: str
    info: TensorInfo
    begin: int
    end: int


def _by_place(span: _Span) -> tuple[int, int]:
    return span.begin, span.end


def _header_length(file: Path, start: bytes, file_bytes: int) -> int:
    if len(start) < LENGTH_BYTES:
        raise broken(
            file, expected=f"at least {LENGTH_BYTES} bytes", found=f"{len(start)} bytes; the file is truncated"
        )
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        found = f"a header length of {length}; this is not a safetensors file"
        raise broken(file, expected=f"a header of at most {MAX_HEADER_BYTES} bytes", found=found)
    if LENGTH_BYTES + length > file_bytes:
        expected = f"at least {LENGTH_BYTES + length} bytes, which the header needs"
        raise broken(file, expected=expected, found=f"{file_bytes} bytes; the file is truncated")
    return length


def _check_metadata(file: Path, metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken(file, expected="__metadata__ to map text to text", found=shown(metadata))


def _parse_entry(file: Path, name: str, entry: Any) -> _Span:
    """One tensor's entry, its shape and dtype checked against the bytes it claims."""
    if not isinstance(entry, dict):
        raise broken(file, tensor=name, expected="an object with dtype, shape and data_offsets", found=shown(entry))
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS_OF_DTYPE:
        raise broken(file, tensor=name, expected=f"a dtype of {', '.join(BITS_OF_DTYPE)}", found=shown(dtype))
    if not _is_shape(shape):
        raise broken(file, tensor=name, expected=f"a shape of up to {MAX_DIMENSIONS} counts", found=shown(shape))
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(file, tensor=name, expected="data_offsets [begin, end]", found=shown(offsets))
    begin, end = offsets
    num_bits = math.prod(shape) * BITS_OF_DTYPE[dtype]
    if num_bits != 8 * (end - begin):
        size = f"{num_bits} bits" if num_bits % 8 else f"{num_bits // 8} bytes"
        expected = f"{size} for {dtype} {shown(tuple(shape))}"
        raise broken(file, tensor=name, expected=expected, found=f"{end - begin} bytes (data_offsets {shown(offsets)})")
    return _Span(name, TensorInfo(file, dtype, tuple(shape), end - begin), begin, end)


def _is_shape(value: Any) -> TypeGuard[list[int]]:
    """Whether torch could hold it: a dim of 0 does not excuse the others, since strides are counted all the same."""
    return _is_counts(value) and len(value) <= MAX_DIMENSIONS and math.prod(max(size, 1) for size in value) < MAX_COUNT


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0 up; True is not a number here."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < MAX_COUNT for item in value)


def _check_spans(file: Path, spans: list[_Span], data_start: int, file_bytes: int) -> None:
    """The data must hold each tensor once, side by side, and nothing else."""
    position = 0
    previous = "the start of the data"
    for span in spans:
        if span.begin != position:
            trouble = "overlaps" if span.begin < position else "leaves a gap after"
            found = f"{span.begin}, which {trouble} {previous}"
            raise broken(file, tensor=span.name, expected=f"data to begin at {position}", found=found)
        if data_start + span.end > file_bytes:
            expected = f"data up to byte {data_start + span.end} (file of {data_start + spans[-1].end} bytes)"
            found = f"a file of {file_bytes} bytes; it is truncated"
            raise broken(file, tensor=span.name, expected=expected, found=found)
        position, previous = span.end, shown(span.name)
    if data_start + position != file_bytes:
        expected = f"{data_start + position} bytes, which the header accounts for"
        raise broken(file, expected=expected, found=f"{file_bytes} bytes; what follows belongs to no tensor")
