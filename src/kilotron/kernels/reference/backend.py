"""ReferenceBackend: every kernel operation in plain torch. Correct before fast, and the same on any device."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import (
    Activation,
    AttentionOptions,
    AttentionRows,
    DecoderLayer,
    ExpertWeights,
    HeadNorms,
    KVLayer,
    KVShape,
    PackedExperts,
    PackedFiles,
    PackedLayers,
    PackedLinear,
    QuantizedWeight,
    Rotation,
    TemperedRows,
    Weight,
)
from kilotron.kernels.reference import attention, exact_weights
from kilotron.kernels.reference.attention import Cache, ReferenceKVLayer, ReferencePlan
from kilotron.kernels.reference.full_attention import attend_fully

# Products of a few odd rows, or of few multiplications, take another path through the CPU's matrix library, with
# another order of summation. Padding small ones to a multiple of 4 rows and beyond the fewest multiplications keeps a
# row's bits the same alone and in a crowd (seen on AVX-512 machines; tests/invariance holds it).
_ROW_MULTIPLE = 4
_SMALL_ROWS = 32
_FEWEST_MULTIPLICATIONS = 4097
# Float32 functions run on so many values at a time; what is left at a thread's end is computed one by one, with
# other bits. Padding leaves nothing over.
_FLOAT32_STRIDE = 32


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}
# Of several operations: their results are rounded once, at the end.
_COMPOSED = {"quick_gelu"}


class ReferenceLinear(NamedTuple):
    """A weight matrix [out, in] and bias [out] as they are, and what follows the product."""

    weight: Tensor
    bias: Tensor | None
    activation: Activation | None = None


class ReferenceExperts(NamedTuple):
    """The experts' plain weights, E matrices each."""

    gate_up: Tensor | Sequence[Tensor]
    down: Tensor | Sequence[Tensor]
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    activation: Activation


class ReferenceBackend:
    """`KernelBackend` in plain torch; see `kernels/interface.py` for what each operation means."""

    name = "reference"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def free_memory_bytes(self) -> int:
        """Memory of the device that is not in use by anyone."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return int(psutil.virtual_memory().available)

    @property
    def packed_files(self) -> PackedFiles | None:
        """None: nothing is packed here."""
        return None

    def pack_linear(self, weight: Weight, bias: Tensor | None, activation: Activation | None = None) -> PackedLinear:
        """Keeps what is plain as it is."""
        return ReferenceLinear(_dequantized(weight), bias, activation)

    def linear(self, x: Tensor, packed: PackedLinear, residual: Tensor | None = None) -> Tensor:
        """[T, in] -> [T, out]"""
        result = self.activate(self.multiply(x, packed.weight, packed.bias), packed.activation)
        return result if residual is None else residual + result

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x @ weight.T + bias, with enough rows of padding to be independent of their number."""
        num_rows = x.shape[0]
        if num_rows < _SMALL_ROWS:
            fewest = max(num_rows, -(-_FEWEST_MULTIPLICATIONS // weight.numel()))
            padding = fewest - num_rows + -fewest % _ROW_MULTIPLE
            padded = functional.pad(x, (0, 0, 0, padding)) if padding else x
            return functional.linear(padded, weight, bias)[:num_rows]
        return functional.linear(x, weight, bias)

    def activate(self, x: Tensor, activation: Activation | None) -> Tensor:
        """[T, n] -> [T, n], or [T, n / 2] when gated"""
        if activation is None:
            return x
        gate, up = x.chunk(2, dim=-1) if activation.is_gated else (x, None)
        if activation.clamp is not None:
            gate = gate.clamp(max=activation.clamp)
        gate = _activate(gate, activation.kind)
        if up is None:
            return gate
        if activation.clamp is not None:
            up = up.clamp(-activation.clamp, activation.clamp)
        return gate * (up + activation.linear_offset if activation.linear_offset else up)

    def embedding(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[T] int64, [vocabulary, hidden] -> [T, hidden]"""
        return table.index_select(0, token_ids)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, weight_offset: float = 0.0) -> Tensor:
        """Zhang and Sennrich 2019, in float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        if weight_offset:
            return (wide * (weight.float() + weight_offset)).to(x.dtype)
        return wide.to(x.dtype) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        """Ba, Kiros and Hinton 2016."""
        return functional.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        """One tensor, [layers, 2, G, N, B, D], so that its memory is given back whole. Only the null block is
        touched, so memory fills as it is used."""
        sizes = (shape.num_layers, 2, shape.num_query_groups, shape.num_blocks, shape.block_size)
        numbers = torch.empty((*sizes, shape.kv_channels), dtype=shape.dtype, device=self.device)
        scales = torch.empty(sizes, device=self.device) if shape.dtype == torch.int8 else None
        null_block = torch.zeros(1, dtype=torch.int64, device=self.device)
        layers = []
        for layer in range(shape.num_layers):
            caches = [Cache(numbers[layer, i], None if scales is None else scales[layer, i]) for i in (0, 1)]
            for cache in caches:
                cache.clear(null_block)
            layers.append(ReferenceKVLayer(*caches))
        return layers

    def clear_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> None:
        """Zeroes blocks in all layers."""
        index = torch.tensor(block_ids, device=self.device)
        for layer in kv_layers:
            layer.keys.clear(index)
            layer.values.clear(index)

    def read_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> Tensor:
        """[blocks, bytes of a block] uint8 on the host"""
        index = torch.tensor(block_ids, device=self.device)
        parts = [
            part.index_select(1, index).transpose(0, 1).flatten(1).view(torch.uint8) for part in _parts_of(kv_layers)
        ]
        return torch.cat(parts, dim=1).cpu()

    def write_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int], contents: Tensor) -> None:
        """Puts back what `read_kv_blocks` gave."""
        index = torch.tensor(block_ids, device=self.device)
        first = 0
        for part in _parts_of(kv_layers):
            sizes = part.transpose(0, 1).shape[1:]
            last = first + sizes.numel() * part.itemsize
            # A copy of its own, aligned for the dtype.
            values = contents[:, first:last].clone(memory_format=torch.contiguous_format).view(part.dtype)
            part.index_copy_(1, index, values.unflatten(1, sizes).transpose(0, 1).to(self.device))
            first = last

    def release_unused_memory(self) -> None:
        """On CUDA, what torch keeps; a CPU's large tensors are given back as soon as nobody holds them."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def rotate_and_append(
        self, heads: Tensor, norms: HeadNorms | None, rotation: Rotation | None, kv: KVLayer, kv_slots: Tensor
    ) -> Tensor:
        """[T, H + 2G, D] -> [T, H, D]"""
        groups = kv.keys.numbers.shape[0]
        query, keys, values = heads.split((heads.shape[1] - 2 * groups, groups, groups), dim=1)
        if norms is not None:
            query = self.rms_norm(query, norms.query_weight, norms.epsilon, norms.weight_offset)
            keys = self.rms_norm(keys, norms.key_weight, norms.epsilon, norms.weight_offset)
        if rotation is not None:
            query, keys = rotate(query, rotation), rotate(keys, rotation)
        kv.keys.write(keys, kv_slots)
        kv.values.write(values, kv_slots)
        return query

    def plan_attention(self, rows: AttentionRows, block_size: int) -> ReferencePlan:
        """Bundles rows of like size."""
        return attention.plan_attention(rows, block_size, self.device)

    def paged_attention(self, query: Tensor, kv: KVLayer, plan: ReferencePlan, options: AttentionOptions) -> Tensor:
        """[T, H, D] -> [T, H, D]"""
        return attention.paged_attention(query, kv, plan, options)

    def full_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: Sequence[int] | np.ndarray,
        *,
        scale: float,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Each row by itself, in float32."""
        return attend_fully(query, key, value, lengths, scale=scale, bias=bias)

    def pack_layers(self, layers: Sequence[DecoderLayer]) -> PackedLayers | None:
        """None: there is nothing to gain in plain torch."""
        return None

    def pack_experts(self, weights: ExpertWeights, activation: Activation) -> PackedExperts:
        """Keeps what is plain as it is."""
        gate_up, down = (
            stack if isinstance(stack, Tensor) else [_dequantized(weight) for weight in stack] for stack in weights[:2]
        )
        return ReferenceExperts(gate_up, down, weights.gate_up_bias, weights.down_bias, activation)

    def mix_experts(self, x: Tensor, packed: PackedExperts, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """One product per expert that any token chose; a token's experts are summed in ascending order of id."""
        result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in expert_ids.unique().tolist():
            tokens, choice = (expert_ids == expert).nonzero(as_tuple=True)
            first_bias, second_bias = (
                None if bias is None else bias[expert] for bias in (packed.gate_up_bias, packed.down_bias)
            )
            hidden = self.multiply(x.index_select(0, tokens), packed.gate_up[expert], first_bias)
            hidden = self.multiply(self.activate(hidden, packed.activation), packed.down[expert], second_bias)
            result.index_add_(0, tokens, hidden.float() * expert_weights[tokens, choice].unsqueeze(-1))
        return result.to(x.dtype)

    def max_of_rows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[R, V] -> [R] float32, [R] int64"""
        return exact_weights.max_of_rows(logits)

    def weigh(self, exponents: Tensor) -> Tensor:
        """[R, C] -> [R, C] int64"""
        return exact_weights.to_weights(exponents)

    def sum_weights(self, rows: TemperedRows, thresholds: Tensor | None) -> Tensor:
        """[R] int64"""
        return exact_weights.sum_by_chunks(rows, thresholds)

    def draw(self, rows: TemperedRows, thresholds: Tensor | None, uniforms: Tensor) -> Tensor:
        """[R] int64"""
        return exact_weights.draw_by_chunks(rows, thresholds, uniforms)

    def list_greatest(self, logits: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """[R, count] float32 and int64"""
        return exact_weights.list_by_chunks(logits, rows, count)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """[T, heads, D] -> the same, its first channels rotated in float32."""
    half = rotation.cos.shape[-1]
    cos, sin = rotation.cos.unsqueeze(1), rotation.sin.unsqueeze(1)
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    if 2 * half == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., 2 * half :]), dim=-1)


def _parts_of(kv_layers: list[KVLayer]) -> list[Tensor]:
    """All tensors of a cache; their second axis is the block's."""
    caches = [cache for layer in kv_layers for cache in (layer.keys, layer.values)]
    return [part for cache in caches for part in cache if part is not None]


def _dequantized(weight: Weight) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedWeight) else weight


def _activate(x: Tensor, kind: str) -> Tensor:
    function = _ACTIVATIONS[kind]
    if x.dtype != torch.float32:
        return _activate(x.float(), kind).to(x.dtype) if kind in _COMPOSED else function(x)
    padding = -x.numel() % (_FLOAT32_STRIDE * torch.get_num_threads())
    return function(functional.pad(x.reshape(-1), (0, padding)))[: x.numel()].view(x.shape)
