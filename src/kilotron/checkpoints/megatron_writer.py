"""Writes Megatron's `torch_dist` checkpoints, as megatron-core 0.19 does, a chunk in memory at a time.

Files of chunks are written one by one; `.metadata`, which says what is where, comes last. Knows nothing of models.
"""

import io
import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from kilotron.checkpoints.damage import broken
from kilotron.checkpoints.megatron_keys import SECOND_NAMES, Place, extra_state_keys
from kilotron.checkpoints.megatron_names import COMMON_STATE
from kilotron.checkpoints.output_tensor import DigestingStream, OutputTensor, read_checked
from kilotron.checkpoints.safetensors_file import TORCH_NAME_OF_DTYPE

CHECKPOINT_VERSION = 3.0
FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}

Entry = list[Any]
"""[name, first byte, number of bytes] of what lies in a file; the name is a tensor's canonical one, or an object's."""


def chunk_file_name(index: int) -> str:
    """Name of a file of chunks, counted from 0, as rank 0 of Megatron would call it."""
    return f"__0_{index}.distcp"


def write_chunks(stream: DigestingStream, tensors: Sequence[OutputTensor], places: Mapping[str, Place]) -> list[Entry]:
    """Writes one file of tensors and returns what lies where.

    Raises:
        OSError: there is no room.
        CheckpointError: a tensor is not what was announced.
    """
    entries = []
    for tensor in tensors:
        values = read_checked(tensor).reshape(places[tensor.name].sizes).contiguous()
        if values.untyped_storage().nbytes() != values.nbytes:
            values = values.clone()  # what is saved of a view is all it is a view of
        start = stream.num_bytes
        torch.save(values, cast(Any, stream))
        entries.append([tensor.name, start, stream.num_bytes - start])
    return entries


def write_common_state(
    stream: DigestingStream, arguments: Mapping[str, Any], places: Mapping[str, Place]
) -> list[Entry]:
    """Writes the file of everything that is no tensor: Megatron's arguments, and empty extra states."""
    common = {"args": Namespace(**arguments), "checkpoint_version": CHECKPOINT_VERSION, "iteration": 0}
    objects: Iterable[tuple[str, object]] = [
        (COMMON_STATE, common),
        *((key, None) for key in extra_state_keys(places)),
    ]
    entries = []
    for key, value in objects:
        blob = io.BytesIO()
        torch.save([value], blob)
        start = stream.num_bytes
        stream.write(blob.getbuffer())
        entries.append([key, start, stream.num_bytes - start])
    return entries


def write_metadata(
    folder: Path,
    files: Mapping[str, Sequence[Entry]],
    tensors: Sequence[OutputTensor],
    places: Mapping[str, Place],
) -> None:
    """Writes `.metadata` and `metadata.json` for the `files` (name -> what lies in it) of a folder.

    Raises:
        BrokenCheckpointError: a tensor is in no file.
    """
    results = {
        entry[0]: _result(file, entry, places.get(entry[0])) for file, inside in files.items() for entry in inside
    }
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for tensor in tensors:
        if tensor.name not in results:
            raise broken(folder, tensor=tensor.name, expected="to be in a file", found="it in none")
        place = places[tensor.name]
        dtype = getattr(torch, TORCH_NAME_OF_DTYPE[tensor.dtype])
        whole = described.setdefault(
            place.key, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(place.global_shape), [])
        )
        cast(TensorStorageMetadata, whole).chunks.append(
            ChunkStorageMetadata(torch.Size(place.offsets), torch.Size(place.sizes))
        )
    described |= {name: BytesStorageMetadata() for name in results if name not in places}
    described |= {second: described[key] for key, second in SECOND_NAMES.items() if key in described}
    writer = FileSystemWriter(folder)
    writer.finish(Metadata(described), [[*results.values(), *_under_second_names(results.values())]])
    (folder / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")


def _under_second_names(results: Iterable[WriteResult]) -> Iterator[WriteResult]:
    """The same bytes of the same files once more, for readers that ask for the other name."""
    for result in results:
        if (key := result.index.fqn) in SECOND_NAMES:
            yield replace(result, index=replace(result.index, fqn=SECOND_NAMES[key]))


def _result(file: str, entry: Entry, place: Place | None) -> WriteResult:
    name, start, length = entry
    index = MetadataIndex(name) if place is None else MetadataIndex(place.key, place.offsets)
    return WriteResult(index=index, size_in_bytes=length, storage_data=_StorageInfo(file, start, length))
