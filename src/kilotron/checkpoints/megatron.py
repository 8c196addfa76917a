"""A Megatron checkpoint of any layout, as named tensors and the saved arguments. Needs no Megatron, and runs no code.

Tensors have one name each, see `megatron_names.py`, and are whole however they were cut when they were saved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from kilotron.checkpoints.checkpoint import Checkpoint
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.inert_values import Inert
from kilotron.checkpoints.mapped_file import FileIdentity, MappedFile
from kilotron.checkpoints.megatron_args import plain_args
from kilotron.checkpoints.megatron_dist import DistributedCheckpoint
from kilotron.checkpoints.megatron_folder import Format, MegatronFolder, find_megatron_folder, is_megatron_folder
from kilotron.checkpoints.megatron_legacy import LegacyCheckpoint
from kilotron.checkpoints.megatron_names import canonical_tensors, is_weight
from kilotron.checkpoints.sharded_tensor import ShardedTensor
from kilotron.checkpoints.source_folder import find_checkpoint_folder
from kilotron.checkpoints.torch_archive import read_torch_archive
from kilotron.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["MegatronCheckpoint", "is_megatron_folder"]

COMMON_FILE = "common.pt"
COMMON_OBJECT = "common_state/shard_0_1"
ARGS_OBJECT = "args"  # of torch_dcp


class _Files(Protocol):
    """What a format's reader gives beside tensors."""

    def drop_pages(self) -> None: ...
    def close(self) -> None: ...


class MegatronCheckpoint(Checkpoint):
    """A checkpoint that was found in order when it was opened. A tensor in one piece is read without copying it.

    Example:
        with MegatronCheckpoint.open("checkpoints/gpt") as checkpoint:
            embedding = checkpoint.read("embedding.word_embeddings.weight")
    """

    def __init__(
        self, found: MegatronFolder, args: Mapping[str, Any], tensors: Mapping[str, ShardedTensor], files: _Files
    ) -> None:
        architecture = "MegatronT5" if any(".cross_attention." in name for name in tensors) else "MegatronGPT"
        infos = {name: tensor.info for name, tensor in tensors.items()}
        super().__init__(found.folder, {**args, "architectures": [architecture]}, {}, infos)
        self.args = args
        self.format: Format = found.format
        self.iteration = found.iteration
        self._tensors: Mapping[str, ShardedTensor] = tensors
        self._files = files

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


_Content = tuple[Mapping[str, Any], Mapping[str, ShardedTensor], _Files]


def _read_legacy(folder: Path) -> _Content:
    checkpoint = LegacyCheckpoint(folder)
    return checkpoint.args, checkpoint.tensors, checkpoint


def _read_distributed(found: MegatronFolder) -> _Content:
    checkpoint = DistributedCheckpoint(found.folder, _is_wanted)
    return _read_args(checkpoint), canonical_tensors(checkpoint.tensors), checkpoint


def _is_wanted(name: str) -> bool:
    return name in (COMMON_OBJECT, ARGS_OBJECT) or is_weight(name)


def _read_args(checkpoint: DistributedCheckpoint) -> dict[str, Any]:
    """The saved arguments, wherever this version of Megatron put them."""
    file = checkpoint.folder / COMMON_FILE
    if file.exists():
        common = read_torch_archive(MappedFile(file, FileIdentity.of(file)))
    elif blob := checkpoint.objects.get(COMMON_OBJECT):
        file, common = blob.file.file, blob.load()
        common = common[0] if isinstance(common, list) and common else common
    elif blob := checkpoint.objects.get(ARGS_OBJECT):
        file, common = blob.file.file, {"args": blob.load()}
    else:
        file, common = checkpoint.folder, {}
    args = common.get("args") if isinstance(common, dict) else None
    if not isinstance(args, Inert):
        raise broken(file, expected="the saved arguments, `args`", found="none, so that the model is not known")
    return plain_args(args, file=file)
