"""ReferenceBackend: every kernel operation in plain torch. Correct before fast, and the same on any device."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import (
    AttentionOptions,
    AttentionRows,
    ExpertWeights,
    KVLayer,
    KVShape,
    PackedLinear,
)
from kilotron.kernels.reference import attention
from kilotron.kernels.reference.attention import ReferencePlan

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
    "relu": functional.relu,
}


class ReferenceLinear(NamedTuple):
    """A weight matrix [out, in] and bias [out] as they are."""

    weight: Tensor
    bias: Tensor | None


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

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """Keeps both as they are."""
        return ReferenceLinear(weight, bias)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[T, in] -> [T, out]"""
        num_rows = x.shape[0]
        if num_rows < _SMALL_ROWS:
            fewest = max(num_rows, -(-_FEWEST_MULTIPLICATIONS // packed.weight.numel()))
            padding = fewest - num_rows + -fewest % _ROW_MULTIPLE
            padded = functional.pad(x, (0, 0, 0, padding)) if padding else x
            return functional.linear(padded, packed.weight, packed.bias)[:num_rows]
        return functional.linear(x, packed.weight, packed.bias)

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

    def activate(self, x: Tensor, kind: str) -> Tensor:
        """Element-wise activation by name."""
        function = _ACTIVATIONS[kind]
        if x.dtype != torch.float32:
            return function(x)
        padding = -x.numel() % (_FLOAT32_STRIDE * torch.get_num_threads())
        return function(functional.pad(x.reshape(-1), (0, padding)))[: x.numel()].view(x.shape)

    def activate_gated(self, gate_up: Tensor, kind: str) -> Tensor:
        """[T, 2 * ffn] -> [T, ffn]"""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.activate(gate, kind) * up

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Su et al. 2021, half-split layout as in GPT-NeoX; computed in float32."""
        half = cos.shape[-1]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        first, second = x[..., :half].float(), x[..., half : 2 * half].float()
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
        if 2 * half == x.shape[-1]:
            return rotated
        return torch.cat((rotated, x[..., 2 * half :]), dim=-1)

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        """One tensor, [layers, 2, G, N, B, D]. Only the null block is touched, so memory fills as it is used."""
        storage = torch.empty(
            (shape.num_layers, 2, shape.num_query_groups, shape.num_blocks, shape.block_size, shape.kv_channels),
            dtype=shape.dtype,
            device=self.device,
        )
        storage[:, :, :, 0] = 0
        return [KVLayer(layer[0], layer[1]) for layer in storage.unbind(0)]

    def clear_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> None:
        """Zeroes blocks in all layers."""
        index = torch.tensor(block_ids, device=self.device)
        for layer in kv_layers:
            layer.keys.index_fill_(1, index, 0)
            layer.values.index_fill_(1, index, 0)

    def append_kv(self, kv: KVLayer, keys: Tensor, values: Tensor, kv_slots: Tensor) -> None:
        """Writes [T, G, D] keys and values at block id * B + offset."""
        groups, _, _, channels = kv.keys.shape
        kv.keys.view(groups, -1, channels).index_copy_(1, kv_slots, keys.transpose(0, 1))
        kv.values.view(groups, -1, channels).index_copy_(1, kv_slots, values.transpose(0, 1))

    def plan_attention(self, rows: AttentionRows, block_size: int) -> ReferencePlan:
        """Bundles rows of like size."""
        return attention.plan_attention(rows, block_size, self.device)

    def paged_attention(self, query: Tensor, kv: KVLayer, plan: ReferencePlan, options: AttentionOptions) -> Tensor:
        """[T, H, D] -> [T, H, D]"""
        return attention.paged_attention(query, kv, plan, options)

    def mix_experts(
        self, x: Tensor, weights: ExpertWeights, expert_ids: Tensor, expert_weights: Tensor, kind: str
    ) -> Tensor:
        """One product per expert that any token chose; a token's experts are summed in ascending order of id."""
        result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in expert_ids.unique().tolist():
            tokens, choice = (expert_ids == expert).nonzero(as_tuple=True)
            hidden = self.linear(x.index_select(0, tokens), ReferenceLinear(weights.gate_up[expert], None))
            hidden = self.linear(self.activate_gated(hidden, kind), ReferenceLinear(weights.down[expert], None))
            scale = expert_weights[tokens, choice].unsqueeze(-1)
            result.index_add_(0, tokens, hidden.float() * scale)
        return result.to(x.dtype)
