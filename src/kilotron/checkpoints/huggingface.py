"""A Hugging Face checkpoint: config.json, generation_config.json and safetensors shards, checked before data is read.

Gives tensors by the names they have in the files. Knows nothing of models, and reads a slice without reading the rest.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kilotron.checkpoints.checkpoint import Checkpoint
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.json_file import read_json_object
from kilotron.checkpoints.safetensors_file import SafetensorsFile
from kilotron.checkpoints.safetensors_header import SafetensorsHeader, TensorInfo, read_safetensors_header
from kilotron.checkpoints.shard_index import INDEX_FILE, MAX_TENSORS, WEIGHTS_FILE, check_shards_exist, read_shard_index
from kilotron.checkpoints.source_folder import CONFIG_FILE, find_checkpoint_folder
from kilotron.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["HuggingFaceCheckpoint", "TensorInfo"]

GENERATION_CONFIG_FILE = "generation_config.json"


class HuggingFaceCheckpoint(Checkpoint):
    """A checkpoint whose files were all found in order when it was opened. Reads are views; nothing is copied.

    Example:
        with HuggingFaceCheckpoint.open("Qwen/Qwen3-0.6B") as checkpoint:
            embedding = checkpoint.read("model.embed_tokens.weight")
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        headers: list[SafetensorsHeader],
    ) -> None:
        super().__init__(folder, config, generation_config, _merge(headers))
        self._files = {header.file: SafetensorsFile(header) for header in headers}

    @classmethod
    def open(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Opens a folder, or a hub id "owner/name" from the local cache or else the network.

        Raises:
            CheckpointNotFoundError: there is no such folder, and no such hub id in reach.
            BrokenCheckpointError: a file is missing, truncated or inconsistent; nothing has been read from any.
            CheckpointError: it is of another format.
        """
        folder = find_checkpoint_folder(source, revision=revision)
        config = read_json_object(folder / CONFIG_FILE)
        generation_file = folder / GENERATION_CONFIG_FILE
        generation_config = read_json_object(generation_file) if os.path.lexists(generation_file) else {}
        if (folder / WEIGHTS_FILE).exists() or not (folder / INDEX_FILE).exists():
            return cls(folder, config, generation_config, [read_safetensors_header(folder / WEIGHTS_FILE)])
        file_of_tensor = read_shard_index(folder / INDEX_FILE)
        shards = sorted(set(file_of_tensor.values()))
        check_shards_exist(folder / INDEX_FILE, shards)
        headers = [read_safetensors_header(shard) for shard in shards]
        checkpoint = cls(folder, config, generation_config, headers)
        _check_index(file_of_tensor, checkpoint.tensors)
        return checkpoint

    def read(self, name: str) -> "torch.Tensor":
        """The whole tensor, as a view of its file; else as for any checkpoint."""
        info = self.require(name)
        file = self._files.get(info.file)
        if file is None:
            raise CheckpointError(f"{self.folder}: the checkpoint is closed; open it again to read {shown(name)}")
        return file.read(name)

    def _read_inside(self, name: str, index: tuple[slice, ...]) -> "torch.Tensor":
        return self.read(name)[index]

    def drop_pages(self) -> None:
        for file in self._files.values():
            file.drop_pages()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}


def _merge(headers: list[SafetensorsHeader]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if (first := tensors.setdefault(name, info)) is not info:
                raise broken(header.file, tensor=name, expected="every tensor in one file", found=f"also {first.file}")
        if len(tensors) > MAX_TENSORS:
            raise broken(header.file, expected=f"at most {MAX_TENSORS} tensors in all", found=f"{len(tensors)}")
    return tensors


def _check_index(file_of_tensor: dict[str, Path], tensors: Mapping[str, TensorInfo]) -> None:
    for name, file in file_of_tensor.items():
        info = tensors.get(name)
        if info is None or info.file != file:
            found = "it in no shard" if info is None else f"it in {info.file.name}"
            raise broken(file, tensor=name, expected="it here, as the index says", found=found)
