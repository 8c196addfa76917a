"""Writes small Megatron checkpoints of every layout out of one set of whole tensors, with torch's own writers."""

import argparse
import io
import itertools
import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

ARGS = {"num_layers": 4, "hidden_size": 8, "swiglu": True, "untie_embeddings_and_output_weights": False}
HIDDEN, FFN, QKV, VOCABULARY, LAYERS = 8, 12, 16, 32, 4


def model_tensors(*, num_layers: int = LAYERS, num_experts: int = 0) -> dict[str, Tensor]:
    """A small gated model with local layers, whole, by its canonical names."""
    generator = torch.Generator().manual_seed(5)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"embedding.word_embeddings.weight": values(VOCABULARY, HIDDEN)}
    for number in range(num_layers):
        layer = f"decoder.layers.{number}."
        tensors[layer + "input_layernorm.weight"] = values(HIDDEN)
        tensors[layer + "self_attention.linear_qkv.weight"] = values(QKV, HIDDEN)
        tensors[layer + "self_attention.linear_qkv.bias"] = values(QKV)
        tensors[layer + "self_attention.linear_proj.weight"] = values(HIDDEN, HIDDEN)
        tensors[layer + "self_attention.linear_proj.bias"] = values(HIDDEN)
        tensors[layer + "pre_mlp_layernorm.weight"] = values(HIDDEN)
        if num_experts:
            tensors[layer + "mlp.router.weight"] = values(num_experts, HIDDEN)
        for mlp in [f"mlp.experts.local_experts.{expert}." for expert in range(num_experts)] or ["mlp."]:
            tensors[layer + mlp + "linear_fc1.weight"] = values(2 * FFN, HIDDEN)
            tensors[layer + mlp + "linear_fc2.weight"] = values(HIDDEN, FFN)
    tensors["decoder.final_layernorm.weight"] = values(HIDDEN)
    return tensors


def shard_of(name: str, tensor: Tensor, rank: int, size: int) -> Tensor:
    """What one of `size` tensor-parallel ranks holds of a tensor."""
    if "linear_fc1" in name:
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])
    if any(part in name for part in ("word_embeddings", "output_layer", "linear_qkv")):
        return tensor.chunk(size)[rank].clone()
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return tensor.chunk(size, dim=1)[rank].clone()
    return tensor


def write_legacy(
    folder: Path, tensors: Mapping[str, Tensor], *, tensor: int = 1, pipeline: int = 1, **args: Any
) -> Path:
    """`mp_rank_TT[_PPP]/model_optim_rng.pt` for every rank, as Megatron cuts it. No experts."""
    per_stage = LAYERS // pipeline
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    for stage in range(pipeline):
        for rank in range(tensor):
            model = {
                local: shard_of(local, whole, rank, tensor)
                for local, whole in _stage_tensors(tensors, stage, pipeline, per_stage)
            }
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pipeline > 1 else "")
            write_rank(folder / name, model, {**ARGS, **sizes, **args})
    return folder


def write_rank(folder: Path, model: Mapping[str, Tensor], args: Mapping[str, Any]) -> None:
    """One rank's file, with an optimizer state that nobody wants."""
    folder.mkdir(parents=True)
    content = {
        "args": argparse.Namespace(**args),
        "iteration": 5,
        "model": dict(model) | {"decoder.layers.0.self_attention.linear_qkv._extra_state": None},
        "optimizer": {"state": [torch.ones(3)]},
    }
    torch.save(content, folder / "model_optim_rng.pt")


def _stage_tensors(
    tensors: Mapping[str, Tensor], stage: int, pipeline: int, per_stage: int
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith("decoder.layers."):
            number, _, rest = name.removeprefix("decoder.layers.").partition(".")
            if int(number) // per_stage == stage:
                yield f"decoder.layers.{int(number) % per_stage}.{rest}", tensor
        elif name.startswith("embedding"):
            if stage == 0:
                yield name, tensor
            if stage == pipeline - 1 > 0:
                yield "output_layer.weight", tensor
        elif stage == pipeline - 1:
            yield name, tensor


def stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the distributed format names them: layers and experts stacked, norms inside the layers behind them."""
    groups: dict[str, dict[tuple[int, ...], Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith("decoder.layers."):
            groups[name] = {(): tensor}
            continue
        number, _, rest = name.removeprefix("decoder.layers.").partition(".")
        rest = rest.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        rest = rest.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        index = [int(number)]
        if "local_experts." in rest:
            before, _, after = rest.partition("local_experts.")
            expert, _, kind = after.partition(".")
            rest = f"{before}experts.{kind}"
            index.append(int(expert))
        groups.setdefault(f"decoder.layers.{rest}", {})[tuple(index)] = tensor
    return {name: _stack(parts) for name, parts in groups.items()}


def _stack(parts: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    if () in parts:
        return parts[()]
    leading = [size + 1 for size in max(parts)]
    first = next(iter(parts.values()))
    return torch.stack([parts[index] for index in sorted(parts)]).view(*leading, *first.shape)


def write_dist(
    folder: Path, tensors: Mapping[str, Any], *, args: Mapping[str, Any] = ARGS, has_common_file: bool
) -> Path:
    """torch_dist of either generation: with common.pt, or with its content as an object beside the tensors."""
    common = {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": 5}
    folder.mkdir(parents=True)
    state = dict(tensors)
    if not has_common_file:
        state["common_state/shard_0_1"] = [common]
    save_dcp(folder, state)
    if has_common_file:
        torch.save(common, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return folder


def save_dcp(folder: Path, state: Mapping[str, Any]) -> None:
    """torch's distributed format. A list is saved as the one object that it is in Megatron's checkpoints."""
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a single process
        dcp.save(dict(state), checkpoint_id=folder, planner=planner, no_dist=True)


def write_pieces(folder: Path, tensors: Mapping[str, tuple[Tensor, tuple[int, ...]]], *, num_files: int = 2) -> Path:
    """torch_dist as many ranks write it: each tensor in pieces of a size, which lie in the files in turn."""
    folder.mkdir(parents=True)
    metadata = Metadata({}, {}, {})
    ends = [0] * num_files
    for name, (tensor, sizes) in tensors.items():
        chunks = []
        steps = (range(0, whole, size) for whole, size in zip(tensor.shape, sizes, strict=True))
        for number, offsets in enumerate(itertools.product(*steps)):
            piece = tensor[
                tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            ].clone()
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), piece.shape))
            file = folder / f"__{number % num_files}_0.distcp"
            with file.open("ab") as stream:
                torch.save(piece, buffer := io.BytesIO())
                stream.write(buffer.getvalue())
            start, ends[number % num_files] = (
                ends[number % num_files],
                ends[number % num_files] + len(buffer.getvalue()),
            )
            place = _StorageInfo(file.name, start, len(buffer.getvalue()))
            metadata.storage_data[MetadataIndex(name, offsets)] = place
        properties = TensorProperties(tensor.dtype)
        metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, tensor.shape, chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    torch.save({"args": argparse.Namespace(**ARGS)}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return folder
