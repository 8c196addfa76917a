"""Writes safetensors shards and their index, one tensor in memory at a time. Knows no folder but the one it is given.

The header is written first, from what is known of the tensors; the library's `save_file` wants all values at once.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kilotron.checkpoints.output_tensor import DigestingStream, OutputTensor, bytes_of, read_checked
from kilotron.checkpoints.shard_index import INDEX_FILE, WEIGHTS_FILE

ALIGNMENT = 8  # of the data's start, as the library has it


def shard_file_name(index: int, count: int) -> str:
    """Name of a shard, counted from 0, as transformers calls it."""
    return WEIGHTS_FILE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_safetensors(stream: DigestingStream, tensors: Sequence[OutputTensor]) -> None:
    """Writes one file of tensors.

    Raises:
        OSError: there is no room.
        CheckpointError: a tensor is not what was announced.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        span = [offset, offset + tensor.num_bytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    stream.write(len(header).to_bytes(8, "little") + header)
    for tensor in tensors:
        stream.write(bytes_of(read_checked(tensor)))


def write_shard_index(folder: Path, shards: Mapping[str, Sequence[OutputTensor]]) -> None:
    """Writes the index of several shards: file name -> tensors."""
    weight_map = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.num_bytes for tensors in shards.values() for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
