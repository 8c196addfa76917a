"""Writes small checkpoints and damages them. Bytes are laid out here by hand, so tests know where each lies."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHT = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
BIAS = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def safetensors_bytes(header: Mapping[str, Any] | str, data: bytes, *, pad: bool = True) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    padded = text.encode() + b" " * (-len(text) % 8 if pad else 0)
    return len(padded).to_bytes(8, "little") + padded + data


def two_tensors(**changes: Any) -> bytes:
    """A file with `weight` and `bias`; a change replaces members of an entry, as in bias={"dtype": "F64"}."""
    entries = {"weight": WEIGHT, "bias": BIAS}
    changed = {name: {**entry, **changes.get(name, {})} for name, entry in entries.items()}
    return safetensors_bytes(changed, bytes(range(32)))


def write_model(folder: Path, content: bytes | None = None, *, config: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(two_tensors() if content is None else content)
    return folder


def write_sharded_model(folder: Path, shards: dict[str, dict[str, torch.Tensor]], **weight_map: str) -> Path:
    """One file per shard and an index; `weight_map` adds to or overrides what the index says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard)
    index = {name: shard for shard, tensors in shards.items() for name in tensors} | weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_cached_repository(cache: Path, hub_id: str, files: Mapping[str, bytes], *, revision: str = "main") -> Path:
    """A repository as huggingface-hub lays it out: blobs, and a snapshot of links to them."""
    repository = cache / ("models--" + hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        (repository / "blobs" / str(number)).write_bytes(content)
        os.symlink(f"../../blobs/{number}", snapshot / name)
    return snapshot
