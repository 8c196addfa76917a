"""Tells apart what some of Megatron's layers keep as one tensor: all experts of a rank, or two down projections.

Only legacy files hold such tensors; the distributed format has their parts. Reads nothing: parts are other places.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from kilotron.checkpoints.damage import broken
from kilotron.checkpoints.inert_values import StoredTensor
from kilotron.checkpoints.safetensors_header import BITS_OF_DTYPE
from kilotron.checkpoints.sharded_tensor import MAX_SPLIT

# `GroupedMLP`, up to megatron-core 0.16.
TURNED_EXPERTS = re.compile(r"(.*\.mlp\.experts)\.weight([12])")
# Transformer Engine's grouped linear layers, with --moe-single-grouped-weight.
STACKED_EXPERTS = re.compile(r"(.*\.mlp\.experts)\.(linear_fc[12]\.(?:weight|bias))")
# With --mla-down-proj-fusion.
DOWN_PROJECTIONS = re.compile(r"(.*\.self_attention)\.linear_qkv_down_proj\.weight")


def split_fused(
    tensors: Mapping[str, StoredTensor], *, num_experts: int, num_q_rows: int, num_kv_rows: int
) -> dict[str, StoredTensor]:
    """The tensors of one rank, each fused one as its parts. The numbers are those of this rank, or of the whole model.

    Raises:
        BrokenCheckpointError: the shape of a fused tensor does not fit the numbers.
    """
    parts: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if match := TURNED_EXPERTS.fullmatch(name):
            named = f"{match[1]}.local_experts.{{}}.linear_fc{match[2]}.weight"
            parts |= _turned_experts(name, tensor, num_experts, named, axis=1 if match[2] == "1" else 0)
        elif match := STACKED_EXPERTS.fullmatch(name):
            parts |= _stacked_experts(name, tensor, num_experts, f"{match[1]}.local_experts.{{}}.{match[2]}")
        elif match := DOWN_PROJECTIONS.fullmatch(name):
            num_rows = tensor.shape[0] if tensor.shape else 0
            middle = num_rows * num_q_rows // max(num_q_rows + num_kv_rows, 1)
            _check(name, tensor, "rows of two down projections", fits=len(tensor.shape) == 2 and 0 < middle < num_rows)
            for kind, start, stop in (("q", 0, middle), ("kv", middle, num_rows)):
                shape = (stop - start, tensor.shape[1])
                parts[f"{match[1]}.linear_{kind}_down_proj.weight"] = _part(tensor, start * shape[1], shape)
        else:
            parts[name] = tensor
    return parts


def _turned_experts(name: str, tensor: StoredTensor, count: int, named: str, *, axis: int) -> dict[str, StoredTensor]:
    """Experts whose matrices lie one behind the other, inputs first: `weight1` [hidden, experts * ffn] is read as
    [experts, hidden, ffn], and `weight2` [experts * ffn, hidden] as [experts, ffn, hidden].
    """
    fits = len(tensor.shape) == 2 and _divides(count, tensor.shape[axis])
    _check(name, tensor, f"matrices of {count} experts", fits=fits)
    inputs, outputs = (size // count if place == axis else size for place, size in enumerate(tensor.shape))
    return {
        named.format(expert): replace(_part(tensor, expert * inputs * outputs, (outputs, inputs)), strides=(1, outputs))
        for expert in range(count)
    }


def _stacked_experts(name: str, tensor: StoredTensor, count: int, named: str) -> dict[str, StoredTensor]:
    """[experts, ...], or [experts * rows, ...]."""
    rows, *rest = tensor.shape or (0,)
    _check(name, tensor, f"a stack of {count} experts", fits=_divides(count, rows))
    shape = tuple(rest) if rows == count else (rows // count, *rest)
    return {named.format(expert): _part(tensor, expert * prod(shape), shape) for expert in range(count)}


def _divides(count: int, size: int) -> bool:
    return 0 < count <= min(size, MAX_SPLIT) and size % count == 0


def _check(name: str, tensor: StoredTensor, expected: str, *, fits: bool) -> None:
    if not fits or tensor.strides != _strides(tensor.shape):
        found = f"shape {tensor.shape} with strides {tensor.strides}"
        raise broken(tensor.path, tensor=name, expected=expected, found=found)


def _part(tensor: StoredTensor, first: int, shape: tuple[int, ...]) -> StoredTensor:
    """The elements from the `first` on, in order."""
    offset = tensor.offset + first * BITS_OF_DTYPE[tensor.dtype] // 8
    return replace(tensor, offset=offset, shape=shape, strides=_strides(shape))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor whose elements lie in order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
