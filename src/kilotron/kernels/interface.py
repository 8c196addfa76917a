"""The interface between models and devices: about a dozen operations that each backend implements.

Letters in shapes: T tokens of one step (all rows concatenated), R rows, H query heads, G key-value heads, D head
size, N blocks, B tokens in a block, E experts, K experts per token. A backend chooses its own weight layout
(`pack_linear`) and its own attention metadata (`plan_attention`, made once per step, used by every layer).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from torch import Tensor, device, dtype


class KVLayer(NamedTuple):
    """One layer's part of the paged KV cache. The order of the axes N, B, G, D is the backend's."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """The size of a paged KV cache."""

    num_layers: int
    num_blocks: int
    """Block 0 is the null block: never granted, always zero."""
    block_size: int
    num_query_groups: int
    """Key-value heads (G)."""
    kv_channels: int
    """Head size (D)."""
    dtype: dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        per_token = 2 * self.num_layers * self.num_query_groups * self.kv_channels * self.dtype.itemsize
        return per_token * self.block_size

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.block_bytes * self.num_blocks


class AttentionRows(NamedTuple):
    """The rows of one step, on the host. Row i computes `num_new[i]` tokens on top of `num_computed[i]`."""

    num_computed: np.ndarray
    """[R] int64; tokens whose keys and values are in the cache already."""
    num_new: np.ndarray
    """[R] int64; tokens of this step. Their sum is T, in row order."""
    block_table: np.ndarray
    """[R, most blocks of a row] int64; block ids in order of position, 0 (the null block) beyond a row's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """What differs between attention layers of one model."""

    scale: float
    """Multiplies the scores before the soft-cap."""
    window: int | None = None
    """Sliding window: a token sees itself and the `window - 1` tokens before; None sees all."""
    softcap: float | None = None
    """Scores become `softcap * tanh(scores / softcap)`."""


class ExpertWeights(NamedTuple):
    """The weights of one mixture-of-experts layer."""

    gate_up: Tensor
    """[E, 2 * ffn, hidden]; gate rows first."""
    down: Tensor
    """[E, hidden, ffn]"""


# What a backend made of a weight matrix or of a step's rows; only the backend that made it looks inside.
PackedLinear: TypeAlias = Any
AttentionPlan: TypeAlias = Any


class KernelBackend(Protocol):
    """One device's implementation of the operations. All results have the dtype of the activations given."""

    @property
    def name(self) -> str:
        """The backend's name as in `InferenceConfig.kernels`."""
        ...

    @property
    def device(self) -> device:
        """Where weights, activations and the KV cache live."""
        ...

    def free_memory_bytes(self) -> int:
        """Memory of the device that is not in use by anyone."""
        ...

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """Brings a weight [out, in] and bias [out] into the layout `linear` wants."""
        ...

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[T, in] -> [T, out]"""
        ...

    def embedding(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[T] int64, [vocabulary, hidden] -> [T, hidden]"""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, weight_offset: float = 0.0) -> Tensor:
        """Root-mean-square norm over the last axis in float32, times `weight + weight_offset`."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        """Layer norm over the last axis."""
        ...

    def activate(self, x: Tensor, kind: str) -> Tensor:
        """Element-wise activation: "silu", "gelu", "gelu_tanh" or "relu"."""
        ...

    def activate_gated(self, gate_up: Tensor, kind: str) -> Tensor:
        """[T, 2 * ffn], gate half first -> activation(gate) * up, [T, ffn]"""
        ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding of the first `2 * cos.shape[-1]` of D, half-split layout.

        [T, H, D], [T, rotated / 2] float32 twice -> [T, H, D]
        """
        ...

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        """The paged cache, one view per layer; the null block is zero, the others need not be."""
        ...

    def clear_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> None:
        """Zeroes blocks in all layers, so that nothing an earlier owner left (a NaN, say) can reach the next one."""
        ...

    def append_kv(self, kv: KVLayer, keys: Tensor, values: Tensor, kv_slots: Tensor) -> None:
        """Writes [T, G, D] keys and values at `kv_slots` [T] = block id * B + offset."""
        ...

    def plan_attention(self, rows: AttentionRows, block_size: int) -> AttentionPlan:
        """Everything about a step's rows that all layers share; masks come later, per window."""
        ...

    def paged_attention(self, query: Tensor, kv: KVLayer, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
        """Causal attention of each row's new tokens over its cached and new ones. [T, H, D] -> [T, H, D]"""
        ...

    def mix_experts(
        self, x: Tensor, weights: ExpertWeights, expert_ids: Tensor, expert_weights: Tensor, kind: str
    ) -> Tensor:
        """Sum over K of expert_weights[t, k] * expert(expert_ids[t, k], x[t]).

        [T, hidden], [T, K] int64, [T, K] float32 -> [T, hidden]; experts are gated with activation `kind`.
        """
        ...
