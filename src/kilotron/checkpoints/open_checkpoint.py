"""The one door to checkpoints: opens whatever a person named, in whatever format it is."""

from pathlib import Path

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.megatron_folder import is_megatron_folder
from kilotron.checkpoints.source_folder import find_checkpoint_folder, is_huggingface_folder


def open_checkpoint(source: str | Path, revision: str | None = None) -> HuggingFaceCheckpoint | MegatronCheckpoint:
    """Opens a folder, or a hub id "owner/name" of a Hugging Face checkpoint.

    Raises:
        CheckpointNotFoundError: there is no such folder, and no such hub id in reach.
        BrokenCheckpointError: a file is missing, truncated or inconsistent; no tensor has been read.
        CheckpointError: it is of a format that is not read.
    """
    folder = find_checkpoint_folder(source, revision=revision)
    if is_megatron_folder(folder) and not is_huggingface_folder(folder):
        return MegatronCheckpoint.open(folder)
    return HuggingFaceCheckpoint.open(folder)
