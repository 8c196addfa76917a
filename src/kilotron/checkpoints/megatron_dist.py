"""Reads checkpoints of torch's distributed format: `.metadata`, a pickle, and pieces of tensors in `.distcp` files.

This is what Megatron calls `torch_dist` and `torch_dcp`. Gives whole tensors by the names in the files, and the objects
that are stored beside them. Does not know what the names mean.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kilotron.checkpoints.bounded_file import read_bounded
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.inert_values import Inert, RefusedPickleError, StoredTensor, TorchDtype, as_counts
from kilotron.checkpoints.mapped_file import MappedFile, MappedFiles
from kilotron.checkpoints.restricted_unpickler import MAX_PICKLE_BYTES, read_pickle
from kilotron.checkpoints.safetensors_file import DTYPE_OF_TORCH_NAME
from kilotron.checkpoints.safetensors_header import BITS_OF_DTYPE
from kilotron.checkpoints.sharded_tensor import Piece, Shape, ShardedTensor
from kilotron.checkpoints.torch_archive import read_torch_archive

if TYPE_CHECKING:
    import torch

METADATA_FILE = ".metadata"
_MODULE = "torch.distributed.checkpoint.metadata."


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A part of a file that torch.save wrote."""

    file: MappedFile
    offset: int
    num_bytes: int

    def load(self) -> Any:
        """Its value, tensors left in the file. Raises BrokenCheckpointError."""
        return read_torch_archive(self.file, self.offset, self.num_bytes)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A stored piece of a tensor, which must be what `.metadata` says of it."""

    name: str
    blob: StoredBlob
    dtype: str
    shape: Shape

    @property
    def path(self) -> Path:
        return self.blob.file.file

    def view(self) -> "torch.Tensor":
        tensor = self.blob.load()
        if not isinstance(tensor, StoredTensor) or (tensor.dtype, tensor.shape) != (self.dtype, self.shape):
            is_tensor = isinstance(tensor, StoredTensor)
            found = f"{tensor.dtype} {tensor.shape}" if is_tensor else f"a {type(tensor).__name__}"
            expected = f"{self.dtype} {self.shape} at byte {self.blob.offset}, as {METADATA_FILE} says"
            raise broken(self.path, tensor=self.name, expected=expected, found=found)
        return tensor.view()


class DistributedCheckpoint:
    """The tensors and objects of a folder, once all of `.metadata` was checked against the files beside it."""

    def __init__(self, folder: Path, is_wanted: Callable[[str], bool]) -> None:
        """`is_wanted(name)` tells which tensors and objects matter; of the others nothing is checked.

        Raises:
            BrokenCheckpointError: a file is missing or cut short, or pieces do not make their tensor.
        """
        self.folder = folder
        self.files = MappedFiles()
        self.tensors: dict[str, ShardedTensor] = {}
        self.objects: dict[str, StoredBlob] = {}
        self._metadata_file = folder / METADATA_FILE
        self._is_wanted = is_wanted
        metadata = self._read_metadata()
        blobs = self._read_places(metadata.field("storage_data"))
        for name, entry in self._entries(metadata.field("state_dict_metadata")):
            if entry.name == _MODULE + "TensorStorageMetadata":
                self.tensors[name] = self._tensor(name, entry, blobs.get(name, {}))
            elif () in blobs.get(name, {}):
                self.objects[name] = blobs[name][()]

    def _read_metadata(self) -> Inert:
        file = self._metadata_file
        metadata = read_pickle(read_bounded(file, MAX_PICKLE_BYTES), file=file)
        if not isinstance(metadata, Inert) or not isinstance(metadata.state, dict):
            raise broken(file, expected="a Metadata object of torch", found=f"a {type(metadata).__name__}")
        return metadata

    def _entries(self, entries: Any) -> Iterator[tuple[str, Inert]]:
        if not isinstance(entries, dict):
            raise broken(self._metadata_file, expected="a dict of all tensors", found=f"a {type(entries).__name__}")
        for name, entry in entries.items():
            if not isinstance(name, str) or not isinstance(entry, Inert):
                raise broken(self._metadata_file, expected="tensors by name", found=f"{shown(name)}: {shown(entry)}")
            if self._is_wanted(name):
                yield name, entry

    def _read_places(self, places: Any) -> dict[str, dict[Shape, StoredBlob]]:
        """Where each piece lies: name, then the piece's offsets (none for an object), then the place."""
        if not isinstance(places, dict):
            raise broken(self._metadata_file, expected="a dict of places", found=f"a {type(places).__name__}")
        blobs: dict[str, dict[Shape, StoredBlob]] = {}
        for index, place in places.items():
            if not isinstance(index, Inert) or not isinstance(place, Inert):
                raise broken(self._metadata_file, expected="places by MetadataIndex", found=shown(index))
            name, offsets = index.field("fqn"), index.field("offset")
            if not isinstance(name, str):
                raise broken(self._metadata_file, expected="the name of a tensor", found=shown(name))
            if self._is_wanted(name):
                key = () if offsets is None else self._counts(name, offsets)
                blobs.setdefault(name, {})[key] = self._blob(name, place)
        _check_apart(blobs)
        return blobs

    def _blob(self, name: str, place: Inert) -> StoredBlob:
        if place.field("transform_descriptors"):
            expected = "bytes as they are; save the checkpoint again without transforms"
            raise broken(self._metadata_file, tensor=name, expected=expected, found="transformed bytes")
        file = self._file(name, place.field("relative_path"))
        offset, num_bytes = self._counts(name, (place.field("offset"), place.field("length")))
        if offset + num_bytes > file.identity.num_bytes:
            expected = f"at least {offset + num_bytes} bytes"
            found = f"{file.identity.num_bytes} bytes; the file is truncated"
            raise broken(file.file, tensor=name, expected=expected, found=found)
        return StoredBlob(file, offset, num_bytes)

    def _file(self, tensor: str, name: Any) -> MappedFile:
        if not isinstance(name, str) or not name.isprintable() or PurePosixPath(name).name != name or "\\" in name:
            raise broken(self._metadata_file, tensor=tensor, expected="the name of a file beside it", found=shown(name))
        return self.files.open(self.folder / name, tensor=tensor)

    def _counts(self, name: str, value: Any) -> Shape:
        try:
            return as_counts(value)
        except RefusedPickleError as error:
            raise broken(self._metadata_file, tensor=name, expected="offsets and sizes", found=str(error)) from error

    def _tensor(self, name: str, entry: Inert, blobs: Mapping[Shape, StoredBlob]) -> ShardedTensor:
        properties, chunks = entry.field("properties"), entry.field("chunks")
        dtype = self._dtype(name, properties)
        shape = self._counts(name, entry.field("size"))
        if not isinstance(chunks, list) or not all(isinstance(chunk, Inert) for chunk in chunks):
            raise broken(self._metadata_file, tensor=name, expected="a list of pieces", found=f"{shown(chunks)}")
        pieces = []
        for chunk in chunks:
            offsets = self._counts(name, chunk.field("offsets"))
            sizes = self._counts(name, chunk.field("sizes"))
            blob = blobs.get(offsets)
            if blob is None:
                found = f"no place for the piece at {offsets}"
                raise broken(self._metadata_file, tensor=name, expected="a place for each piece", found=found)
            needed = prod(sizes) * BITS_OF_DTYPE[dtype] // 8
            if blob.num_bytes < needed:
                found = f"{blob.num_bytes} bytes in place of the piece at {offsets}"
                raise broken(blob.file.file, tensor=name, expected=f"at least {needed} bytes", found=found)
            pieces.append(Piece(_Chunk(name, blob, dtype, sizes), offsets, sizes, (0,) * len(sizes)))
        return ShardedTensor.checked(name, dtype, shape, pieces, self._metadata_file)

    def _dtype(self, name: str, properties: Any) -> str:
        state = properties.state if isinstance(properties, Inert) else None
        dtype = state[0] if isinstance(state, tuple) and state else None
        if not isinstance(dtype, TorchDtype) or dtype not in DTYPE_OF_TORCH_NAME:
            raise broken(self._metadata_file, tensor=name, expected="a dtype of torch", found=shown(dtype))
        return DTYPE_OF_TORCH_NAME[dtype]


def _check_apart(blobs: Mapping[str, Mapping[Shape, StoredBlob]]) -> None:
    """Refuses bytes that belong to two pieces, but for pieces that two tensors share whole: one under two names."""
    placed = [(blob, name) for name, pieces in blobs.items() for blob in pieces.values()]
    placed.sort(key=lambda pair: (pair[0].file.file, pair[0].offset))
    shared: set[str] = set()
    for (blob, name), (next_blob, next_name) in pairwise(placed):
        end = blob.offset + blob.num_bytes
        if blob == next_blob and not shared & {name, next_name} and name != next_name:
            shared |= {name, next_name}
        elif blob.file is next_blob.file and end > next_blob.offset:
            expected, found = f"to begin at byte {end} or later, after {shown(name)}", f"it at {next_blob.offset}"
            raise broken(blob.file.file, tensor=next_name, expected=expected, found=found)
