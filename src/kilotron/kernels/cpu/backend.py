"""CpuBackend: the operations on kernels of our own, compiled for several instruction sets (`native/`).

Owns the choice of the instruction set, the allocation of results and the number of threads, which is torch's. Knows
no layout: packed weights, cache layers and step rows are the native module's own objects.
"""

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import repeat
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kilotron.errors import KernelError
from kilotron.kernels.cpu.packed_files import CpuExperts, CpuPackedFiles
from kilotron.kernels.interface import (
    Activation,
    AttentionOptions,
    AttentionPlan,
    AttentionRows,
    DecoderLayer,
    ExpertWeights,
    HeadNorms,
    KVLayer,
    KVShape,
    PackedExperts,
    PackedLayers,
    PackedLinear,
    QuantizedWeight,
    Rotation,
    TemperedRows,
    Weight,
)
from kilotron.kernels.reference.backend import ReferenceBackend

ISA_VARIABLE = "KILOTRON_CPU_ISA"


class CpuLayers(NamedTuple):
    """`PackedLayers` on the kernels of one backend."""

    kernels: Any
    packed: Any

    def run(
        self,
        hidden: Tensor,
        rotations: tuple[Rotation | None, ...],
        kv_layers: list[KVLayer],
        kv_slots: Tensor,
        plan: AttentionPlan,
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        result = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        self.kernels.run_layers(hidden, self.packed, rotations, kv_layers, kv_slots, plan, result)
        return result


class CpuBackend(ReferenceBackend):
    """`KernelBackend` for x86 CPUs; see `kernels/interface.py` for what each operation means.

    Raises:
        KernelError: the kernels were not compiled, or do not run on this machine; the message says what to do.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self._native = _load_native()
        self._kernels = self._native.CpuKernels(_choose_isa(self._native), torch.get_num_threads())
        self.name = f"cpu ({self._kernels.isa})"

    @property
    def packed_files(self) -> CpuPackedFiles:
        """Files of the native module's own layout, which all instruction sets share."""
        return CpuPackedFiles(self._native)

    def pack_linear(self, weight: Weight, bias: Tensor | None, activation: Activation | None = None) -> PackedLinear:
        """Copies into panels; quantized weights stay quantized."""
        wide_bias = None if bias is None else bias.detach().float().contiguous()
        what_follows = activation or (None, False, None, 0.0)
        threads = torch.get_num_threads()
        if isinstance(weight, QuantizedWeight):
            values, scales, zeros = weight.values, weight.scales, weight.zeros
            return self._native.pack_quantized(values, scales, zeros, weight.bits, wide_bias, *what_follows, threads)
        return self._native.pack_plain(weight.detach(), wide_bias, *what_follows, threads)

    def linear(self, x: Tensor, packed: PackedLinear, residual: Tensor | None = None) -> Tensor:
        """[T, in] -> [T, out]"""
        result = x.new_empty((x.shape[0], packed.outputs))
        self._kernels.linear(x, packed, residual, result)
        return result

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, weight_offset: float = 0.0) -> Tensor:
        """Zhang and Sennrich 2019, in float32."""
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._kernels.rms_norm(x, weight, epsilon, weight_offset, result)
        return result

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        """Ba, Kiros and Hinton 2016."""
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._kernels.layer_norm(x, weight, bias, epsilon, result)
        return result

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        """Zeroed memory that fills as it is used."""
        layers: list[KVLayer] = self._native.allocate_kv(
            shape.num_layers,
            shape.num_blocks,
            shape.block_size,
            shape.num_query_groups,
            shape.kv_channels,
            str(shape.dtype).removeprefix("torch."),
        )
        return layers

    def clear_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> None:
        """Nothing to do: `rotate_and_append` clears each group of 16 positions when it writes the first of them."""

    def read_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> Tensor:
        """The blocks as they lie, the layers side by side."""
        return torch.from_numpy(np.concatenate([layer.blocks[block_ids] for layer in kv_layers], axis=1))

    def write_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int], contents: Tensor) -> None:
        """Puts back what `read_kv_blocks` gave."""
        for layer, part in zip(kv_layers, np.split(contents.numpy(), len(kv_layers), axis=1), strict=True):
            layer.blocks[block_ids] = part

    def rotate_and_append(
        self, heads: Tensor, norms: HeadNorms | None, rotation: Rotation | None, kv: KVLayer, kv_slots: Tensor
    ) -> Tensor:
        """[T, H + 2G, D] -> [T, H, D]"""
        tokens, num_heads, channels = heads.shape
        result = heads.new_empty((tokens, num_heads - 2 * kv.heads, channels))
        query_weight, key_weight, epsilon, offset = norms or (None, None, 0.0, 0.0)
        cos, sin = rotation or (None, None)
        self._kernels.rotate_and_append(
            heads, query_weight, key_weight, epsilon, offset, cos, sin, kv, kv_slots, result
        )
        return result

    def plan_attention(self, rows: AttentionRows, block_size: int) -> AttentionPlan:
        """Copies the rows; takes over the number of threads that torch has now."""
        self._kernels.threads = torch.get_num_threads()
        return self._native.StepRows(rows.num_computed, rows.num_new, rows.block_table, block_size)

    def paged_attention(self, query: Tensor, kv: KVLayer, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
        """[T, H, D] -> [T, H, D]"""
        query = query.contiguous()
        result = torch.empty_like(query)
        scale, window, softcap = options.scale, options.window or 0, options.softcap or 0.0
        sinks, position_bias = options.sinks, options.position_bias
        self._kernels.paged_attention(query, kv, plan, scale, window, softcap, sinks, position_bias, result)
        return result

    def pack_layers(self, layers: Sequence[DecoderLayer]) -> PackedLayers | None:
        """One call for all of them: Python between their operations costs 70 us a layer."""
        return CpuLayers(self._kernels, self._native.DecoderLayers(layers))

    def pack_experts(self, weights: ExpertWeights, activation: Activation) -> PackedExperts:
        """One packed matrix of each kind for each expert."""
        first = zip(_of_one_kind(weights.gate_up), _each_bias(weights.gate_up_bias), strict=False)
        second = zip(_of_one_kind(weights.down), _each_bias(weights.down_bias), strict=False)
        return CpuExperts(
            [self.pack_linear(weight, bias, activation) for weight, bias in first],
            [self.pack_linear(weight, bias) for weight, bias in second],
        )

    def mix_experts(self, x: Tensor, packed: PackedExperts, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """All experts' products in two parallel loops; a token's experts are summed in ascending order of id."""
        result = torch.empty(x.shape, dtype=x.dtype)
        self._kernels.mix_experts(x, packed.gate_up, packed.down, expert_ids, expert_weights, result)
        return result

    def max_of_rows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[R, V] -> [R] float32, [R] int64"""
        best, ids = torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.int64)
        self._kernels.max_of_rows(logits, best, ids)
        return best, ids

    def weigh(self, exponents: Tensor) -> Tensor:
        """[R, C] -> [R, C] int64"""
        weights = torch.empty(exponents.shape, dtype=torch.int64)
        self._kernels.weigh(exponents, weights)
        return weights

    def sum_weights(self, rows: TemperedRows, thresholds: Tensor | None) -> Tensor:
        """One pass that keeps nothing but sums."""
        totals = torch.empty(len(rows.rows), dtype=torch.int64)
        self._kernels.sum_weights(*rows, thresholds, totals)
        return totals

    def draw(self, rows: TemperedRows, thresholds: Tensor | None, uniforms: Tensor) -> Tensor:
        """The sums of pieces of each row, then a walk through the piece that the draw fell into."""
        tokens = torch.empty(len(rows.rows), dtype=torch.int64)
        self._kernels.draw(*rows, thresholds, uniforms, tokens)
        return tokens

    def list_greatest(self, logits: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Looks twice only where a group of columns may hold one of the greatest; of equals it lists the lowest ids."""
        values = torch.empty((len(rows), count))
        ids = torch.empty((len(rows), count), dtype=torch.int64)
        self._kernels.list_greatest(logits, rows, values, ids)
        return values, ids

    def multiply_rate(self, weight_format: str) -> float:
        """Floating-point operations per second on registers alone: `linear`'s ceiling for weights of this format.

        Args:
            weight_format: a dtype's name, "int8" or "int4".
        """
        self._kernels.threads = torch.get_num_threads()
        return float(self._kernels.multiply_rate(weight_format))

    def read_bandwidth(self, num_bytes: int) -> float:
        """Bytes per second that all threads read out of a fresh buffer of this size."""
        return float(self._native.read_bandwidth(num_bytes, torch.get_num_threads()))


def _of_one_kind(weights: Tensor | Sequence[Weight]) -> Sequence[Weight]:
    """All quantized with the same number of bits, or all plain: the kernels multiply all experts in one loop."""
    kinds = {weight.bits if isinstance(weight, QuantizedWeight) else None for weight in weights}
    if len(kinds) == 1:
        return list(weights)
    return [weight.dequantize() if isinstance(weight, QuantizedWeight) else weight for weight in weights]


def _each_bias(biases: Tensor | None) -> Iterable[Tensor | None]:
    """One for each expert."""
    return repeat(None) if biases is None else biases.unbind()


def why_not_native() -> str | None:
    """Why the native kernels cannot run here, or None when they can."""
    try:
        _choose_isa(_load_native())
    except KernelError as error:
        return str(error)
    return None


def _load_native() -> ModuleType:
    try:
        native = import_module("kilotron.kernels.cpu._native")
    except ImportError as error:
        raise KernelError(
            f"the CPU kernels are not there ({error}); install g++ and then kilotron again, or use kernels=reference"
        ) from error
    return native


def _choose_isa(native: ModuleType) -> str:
    """The best instruction set, or the one that the environment asks for."""
    supported: list[str] = native.supported_isas()
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted:
        if wanted not in supported:
            raise KernelError(f"{ISA_VARIABLE}={wanted} does not run here; what runs: {', '.join(supported) or 'none'}")
        return wanted
    if not supported or supported[0].endswith("_emulated"):
        raise KernelError("the CPU kernels need AVX2 at least, which this processor lacks; use kernels=reference")
    return supported[0]
