"""A Megatron checkpoint of any layout, as named tensors and the saved arguments. Needs no Megatron, and runs no code.

Tensors have one name each, see `megatron_names.py`, and are whole however they were cut when they were saved.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kilotron.checkpoints.checkpoint import Checkpoint
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.inert_values import Inert
from kilotron.checkpoints.mapped_file import MappedFiles
from kilotron.checkpoints.megatron_args import KEPT_GENERATION_CONFIG, kept_object, plain_args
from kilotron.checkpoints.megatron_dist import DistributedCheckpoint
from kilotron.checkpoints.megatron_folder import Format, MegatronFolder, find_megatron_folder, is_megatron_folder
from kilotron.checkpoints.megatron_legacy import LegacyCheckpoint
from kilotron.checkpoints.megatron_names import COMMON_STATE, canonical_tensors, is_weight
from kilotron.checkpoints.megatron_run_config import RUN_CONFIG_FILE, read_run_config
from kilotron.checkpoints.sharded_tensor import ShardedTensor
from kilotron.checkpoints.source_folder import find_checkpoint_folder
from kilotron.checkpoints.torch_archive import read_torch_archive
from kilotron.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["MegatronCheckpoint", "is_megatron_folder"]

COMMON_FILE = "common.pt"
ARGS_OBJECT = "args"  # of torch_dcp
NEMO_FOLDER = "context"
FSDP_NAME = re.compile(r"^model\.module\.|\.(weight|bias)_[wv]$")


class MegatronCheckpoint(Checkpoint):
    """A checkpoint that was found in order when it was opened. A tensor in one piece is read without copying it.

    Example:
        with MegatronCheckpoint.open("checkpoints/gpt") as checkpoint:
            embedding = checkpoint.read("embedding.word_embeddings.weight")
    """

    def __init__(
        self, found: MegatronFolder, args: Mapping[str, Any], tensors: Mapping[str, ShardedTensor], files: MappedFiles
    ) -> None:
        architecture = "MegatronT5" if any(".cross_attention." in name for name in tensors) else "MegatronGPT"
        generation_config = kept_object(args, KEPT_GENERATION_CONFIG) or {}
        infos = {name: tensor.info for name, tensor in tensors.items()}
        super().__init__(found.folder, {**args, "architectures": [architecture]}, generation_config, infos)
        self.args = args
        self.format: Format = found.format
        self.iteration = found.iteration
        self._tensors: Mapping[str, ShardedTensor] = tensors
        self._files = files
        self._paths = {piece.stored.path for tensor in tensors.values() for piece in tensor.pieces}

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Opens the folder of one iteration, or of several, of which the tracker file names the newest.

        Raises:
            CheckpointNotFoundError: there is no such folder.
            BrokenCheckpointError: a file is missing, truncated or inconsistent; no tensor has been read.
            CheckpointError: it is of a format, or of a kind of model, that is not read.
        """
        found = find_megatron_folder(find_checkpoint_folder(source))
        args, tensors, files = _read_legacy(found.folder) if found.format == "torch" else _read_distributed(found)
        if not tensors:
            raise broken(found.folder, expected="weights of a model", found="none")
        return cls(found, args, tensors, files)

    def list_files(self) -> list[Path]:
        """All files that hold a piece of any tensor."""
        return sorted(self._paths)

    def read(self, name: str) -> "torch.Tensor":
        """The whole tensor: a view of its file where it lies in one piece there, else a copy."""
        return self._read_inside(name, ())

    def _read_inside(self, name: str, index: tuple[slice, ...]) -> "torch.Tensor":
        self.require(name)
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder}: the checkpoint is closed; open it again to read {shown(name)}")
        return self._tensors[name].read_slice(index)

    def drop_pages(self) -> None:
        self._files.drop_pages()

    def close(self) -> None:
        self._files.close()
        self._tensors = {}


_Content = tuple[Mapping[str, Any], Mapping[str, ShardedTensor], MappedFiles]


def _read_legacy(folder: Path) -> _Content:
    checkpoint = LegacyCheckpoint(folder)
    return checkpoint.args, checkpoint.tensors, checkpoint.files


def _read_distributed(found: MegatronFolder) -> _Content:
    checkpoint = DistributedCheckpoint(found.folder, _is_wanted)
    if found.format == "torch_dcp" and any(FSDP_NAME.search(name) for name in checkpoint.tensors):
        raise CheckpointError(
            f"{found.folder} is a checkpoint of Megatron-FSDP (fsdp_dtensor), which is not read: load it with Megatron "
            "and save it with --ckpt-format torch_dist"
        )
    return _read_args(checkpoint), canonical_tensors(checkpoint.tensors), checkpoint.files


def _is_wanted(name: str) -> bool:
    return name in (COMMON_STATE, ARGS_OBJECT) or is_weight(name)


def _read_args(checkpoint: DistributedCheckpoint) -> dict[str, Any]:
    """The saved arguments, wherever this version of Megatron put them."""
    file, common = _read_common(checkpoint)
    args = common.get("args") if isinstance(common, dict) else None
    if isinstance(args, Inert):
        return plain_args(args, file=file)
    for folder in (checkpoint.folder, checkpoint.folder.parent):
        if (folder / RUN_CONFIG_FILE).is_file():
            return read_run_config(folder / RUN_CONFIG_FILE)
    found = f"none, and no {RUN_CONFIG_FILE}, so that the model is not known"
    if (checkpoint.folder.parent / NEMO_FOLDER).is_dir():
        found += (
            f"; NeMo keeps only what differs from its classes' defaults in {NEMO_FOLDER}/: write all of the model's "
            f"fields as `model:` into {checkpoint.folder / RUN_CONFIG_FILE}, as Megatron-Bridge does"
        )
    raise broken(file, expected="the saved arguments, `args`", found=found)


def _read_common(checkpoint: DistributedCheckpoint) -> tuple[Path, Any]:
    """What is stored beside tensors, and the file it is in."""
    file = checkpoint.folder / COMMON_FILE
    if file.exists():
        return file, read_torch_archive(checkpoint.files.open(file))
    if blob := checkpoint.objects.get(COMMON_STATE):
        value = blob.load()
        return blob.file.file, value[0] if isinstance(value, list) and value else value
    if blob := checkpoint.objects.get(ARGS_OBJECT):
        return blob.file.file, {"args": blob.load()}
    return checkpoint.folder, {}
