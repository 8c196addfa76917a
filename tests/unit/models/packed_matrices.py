"""Quantized matrices written from the formats' descriptions with numpy, and the plain matrices they stand for.

Sources of the layouts: AutoGPTQ's qlinear_cuda_old.pack, AutoAWQ's gemm.from_linear, compressed-tensors' pack_to_int32
and naive compressor, and the checkpoints of DeepSeek-V3 and vLLM for fp8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Packed(NamedTuple):
    """What is stored for one matrix, by suffix, and the matrix."""

    tensors: dict[str, Tensor]
    plain: Tensor


class Writer(NamedTuple):
    """A way of storing matrices and the quantization_config that tells of it."""

    settings: dict[str, Any]
    write: Callable[[np.random.Generator, tuple[int, int]], Packed]


class Numbers(NamedTuple):
    """values [out, in] and zeros [out, groups], both from 0 up; scales [out, groups] as exact as float16."""

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray

    def plain(self, column_groups: np.ndarray | None = None) -> Tensor:
        """[out, in] float32"""
        columns = self.values.shape[1]
        if column_groups is None:
            column_groups = np.arange(columns) * self.scales.shape[1] // columns
        steps = (self.values - self.zeros[:, column_groups]).astype(np.float32)
        return torch.from_numpy(steps * self.scales[:, column_groups])


def draw(rng: np.random.Generator, shape: tuple[int, int], bits: int, groups: int, *, symmetric: bool) -> Numbers:
    most = 2**bits
    scales = (rng.uniform(0.5, 1.5, (shape[0], groups)) / most).astype(np.float16).astype(np.float32)
    zeros = np.full((shape[0], groups), most // 2) if symmetric else rng.integers(1, most, (shape[0], groups))
    return Numbers(rng.integers(0, most, shape), scales, zeros)


def pack_rows(numbers: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """[n, count] -> [n, words] int32; the number at place i of a word is its order[i]-th."""
    per_word = 32 // bits
    padded = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % per_word))).reshape(len(numbers), -1, per_word)
    words = np.zeros(padded.shape[:2], np.uint32)
    for place in range(per_word):
        words |= padded[..., order[place] if order else place].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def gptq(bits: int, group_size: int, *, version: int = 1, act_order: bool = False, **settings: Any) -> Writer:
    def write(rng: np.random.Generator, shape: tuple[int, int]) -> Packed:
        columns = shape[1]
        groups = 1 if group_size == -1 else -(-columns // group_size)
        column_groups = np.arange(columns) // (columns if group_size == -1 else group_size)
        if act_order:
            column_groups = rng.permutation(column_groups)
        numbers = draw(rng, shape, bits, groups, symmetric=bits == 8)
        stored_zeros = numbers.zeros - 1 if version == 1 else numbers.zeros
        tensors = {
            "qweight": tensor(pack_rows(numbers.values, bits).T),
            "qzeros": tensor(pack_rows(stored_zeros.T, bits)),
            "scales": tensor(numbers.scales.T.astype(np.float16)),
            "g_idx": tensor(column_groups.astype(np.int32)),
        }
        return Packed(tensors, numbers.plain(column_groups))

    layout = {} if version == 1 else {"checkpoint_format": "gptq_v2"}
    own = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order}
    return Writer(own | layout | settings, write)


def awq(group_size: int) -> Writer:
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def write(rng: np.random.Generator, shape: tuple[int, int]) -> Packed:
        numbers = draw(rng, shape, 4, shape[1] // group_size, symmetric=False)
        tensors = {
            "qweight": tensor(pack_rows(numbers.values.T, 4, order)),
            "qzeros": tensor(pack_rows(numbers.zeros.T, 4, order)),
            "scales": tensor(numbers.scales.T.astype(np.float16)),
        }
        return Packed(tensors, numbers.plain())

    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    return Writer(settings, write)


def compressed(
    layout: str, bits: int, strategy: str, group_size: int | None = None, *, symmetric: bool = True
) -> Writer:
    def write(rng: np.random.Generator, shape: tuple[int, int]) -> Packed:
        groups = shape[1] // group_size if group_size else 1
        numbers = draw(rng, shape, bits, groups, symmetric=symmetric)
        if strategy == "tensor":
            numbers = numbers._replace(scales=np.full_like(numbers.scales, numbers.scales[0, 0]))
        middle = 2 ** (bits - 1)
        scales = tensor(numbers.scales).bfloat16()
        numbers = numbers._replace(scales=scales.float().numpy())
        tensors = {"weight_scale": scales[0] if strategy == "tensor" else scales}
        if layout == "pack-quantized":
            tensors["weight_packed"] = tensor(pack_rows(numbers.values, bits))
            tensors["weight_shape"] = torch.tensor(shape)
        else:
            tensors["weight"] = tensor((numbers.values - middle).astype(np.int8))
        if not symmetric:
            zeros = pack_rows(numbers.zeros.T, bits).T if layout == "pack-quantized" else numbers.zeros - middle
            tensors["weight_zero_point"] = tensor(zeros if zeros.dtype == np.int32 else zeros.astype(np.int8))
        return Packed(tensors, numbers.plain())

    weights = {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group_size, "symmetric": symmetric}
    return Writer(compressed_settings(layout, weights), write)


def compressed_settings(layout: str, weights: dict[str, Any], **group: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, **group}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": ["lm_head"]}


def fp8(scales: str, settings: dict[str, Any], *, name: str = "weight_scale", block: int = 32) -> Writer:
    """`scales` is "tensor", "channel" or "block"."""

    def write(rng: np.random.Generator, shape: tuple[int, int]) -> Packed:
        weight = torch.from_numpy(rng.normal(0, 30, shape).astype(np.float32)).to(torch.float8_e4m3fn)
        table_shape = {"tensor": (1, 1), "channel": (shape[0], 1), "block": tuple(-(-size // block) for size in shape)}
        table = tensor(rng.uniform(0.002, 0.006, table_shape[scales]).astype(np.float32))
        repeated = table.repeat_interleave(-(-shape[0] // len(table)) if scales != "block" else block, 0)[: shape[0]]
        repeated = repeated.repeat_interleave(block if scales == "block" else shape[1], 1)[:, : shape[1]]
        stored = table.reshape(()) if scales == "tensor" else table
        return Packed({"weight": weight, name: stored}, weight.float() * repeated)

    return Writer(settings, write)
