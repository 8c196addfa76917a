"""The interface between models, sampling and devices: the operations that each backend implements.

Letters in shapes: T tokens of one step (all rows concatenated), R rows, H query heads, G key-value heads, D head
size, N blocks, B tokens in a block, E experts, K experts per token, V vocabulary, C columns of a list of tokens. A
backend chooses its own weight layout (`pack_linear`) and its own attention metadata (`plan_attention`, made once per
step, used by every layer).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from torch import Tensor, device, dtype, int8


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
    """That of the activations, or int8: then each key and each value of a head has a float32 scale besides."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        scale_bytes = 4 if self.dtype == int8 else 0
        per_head = self.kv_channels * self.dtype.itemsize + scale_bytes
        return 2 * self.num_layers * self.num_query_groups * per_head * self.block_size

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.block_bytes * self.num_blocks


class HeadNorms(NamedTuple):
    """Root-mean-square norms of each query and each key before they are rotated (Qwen3, Gemma-3)."""

    query_weight: Tensor
    """[D]"""
    key_weight: Tensor
    """[D]"""
    epsilon: float
    weight_offset: float


class Rotation(NamedTuple):
    """cos and sin of a rotary embedding (Su et al. 2021, half-split layout) for the tokens of one step.

    Both [T, r / 2] float32; the first r channels of a head are rotated, the others stay.
    """

    cos: Tensor
    sin: Tensor


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
    sinks: Tensor | None = None
    """[H] float32: scores of a key that every query of a head sees and whose value is zero: e to that power joins the
    softmax's denominator (gpt-oss; Megatron's softmax_offset)."""
    position_bias: Tensor | None = None
    """[H, number of distances] float32, added to scaled scores, before the soft-cap: query at position q and key at k
    get column q - k, or the last one where they are farther apart (T5's decoder)."""


class Activation(NamedTuple):
    """What follows a linear layer at once."""

    kind: str
    """"silu", "gelu", "gelu_tanh", "quick_gelu" (x * sigmoid(1.702 x)), "relu" or "relu2" (its square)."""
    is_gated: bool
    """The first half of the outputs goes through the activation and multiplies the second half."""
    clamp: float | None = None
    """What goes into the activation is at most this, and the second half lies within minus this and this (gpt-oss)."""
    linear_offset: float = 0.0
    """Added to the second half before it is multiplied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight matrix [out, in] as small whole numbers: weight = (values - zeros) * scales.

    Neighbouring columns share a scale: column k belongs to group k // group_size.
    """

    values: Tensor
    """[out, in] int8; within [-128, 127] for 8 bits, [0, 15] for 4 bits."""
    scales: Tensor
    """[out, groups] float32"""
    zeros: Tensor
    """[out, groups] int8; all 0 for 8 bits, within [0, 16] for 4 bits."""
    bits: int
    """4 or 8"""
    dtype: dtype
    """Of the activations that it is to be multiplied with, and of what `dequantize` gives."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.values.shape[0], self.values.shape[1]

    @property
    def group_size(self) -> int:
        """Columns that share a scale; a multiple of 32, or all of them."""
        return -(-self.values.shape[1] // self.scales.shape[1])

    def dequantize(self) -> Tensor:
        """[out, in] in `dtype`; the rounding to `dtype` is the only one."""
        groups = self.scales.shape[1]
        wide = (self.values.unflatten(1, (groups, -1)).float() - self.zeros.float()[..., None]) * self.scales[..., None]
        return wide.flatten(1).to(self.dtype)


Weight: TypeAlias = Tensor | QuantizedWeight


class NormWeights(NamedTuple):
    """A norm over the hidden states, and its weights."""

    kind: str
    """"RMSNorm" or "LayerNorm"."""
    weight: Tensor
    """[hidden]"""
    bias: Tensor | None
    """[hidden]; layer norms only."""
    epsilon: float
    weight_offset: float
    """RMS norms only."""


class ExpertWeights(NamedTuple):
    """The weights of one mixture-of-experts layer: E matrices each, or one tensor that holds them."""

    gate_up: Tensor | Sequence[Weight]
    """E times [2 * ffn, hidden], gate rows first; [ffn, hidden] when not gated."""
    down: Tensor | Sequence[Weight]
    """E times [hidden, ffn]"""
    gate_up_bias: Tensor | None = None
    """[E, 2 * ffn], or [E, ffn]"""
    down_bias: Tensor | None = None
    """[E, hidden]"""


class TemperedRows(NamedTuple):
    """Some rows of logits, seen as exponents without a copy: (logit - greatest of the row) / temperature, at most 0.

    A token's *weight* is e to that power in units of 2**-44, rounded down; see `reference/exact_weights.py`. An engine
    gets all weights from one backend: another one's may differ in the last place of e to the power.
    """

    logits: Tensor
    """[any number of rows, V] float32"""
    rows: Tensor
    """[R] int64; which of them."""
    best: Tensor
    """[R] float32; each row's greatest logit."""
    inverse_temperatures: Tensor
    """[R] float32"""

    def take(self, some: Tensor | slice) -> "TemperedRows":
        """Some of the rows."""
        return TemperedRows(self.logits, self.rows[some], self.best[some], self.inverse_temperatures[some])

    def temper(self, logits: Tensor) -> Tensor:
        """Logits [R, C] of any tokens of the rows as exponents."""
        return logits.sub(self.best[:, None]).mul_(self.inverse_temperatures[:, None])

    def exponents(self) -> Tensor:
        """Of all tokens, [R, V] float32."""
        exponents = self.logits.index_select(0, self.rows).sub_(self.best[:, None])
        return exponents.mul_(self.inverse_temperatures[:, None])


# What a backend made of weights, of a step's rows, or of one layer's part of the paged KV cache; only the backend that
# made it looks inside.
PackedLinear: TypeAlias = Any
PackedExperts: TypeAlias = Any
AttentionPlan: TypeAlias = Any
KVLayer: TypeAlias = Any


class PackedFiles(Protocol):
    """Keeps what a backend packed in files of its own kind, to be used where it lies."""

    @property
    def layout(self) -> str:
        """Changes whenever files written before cannot be read any more."""
        ...

    def write(self, path: Path, weights: Mapping[str, PackedLinear | PackedExperts]) -> int:
        """Writes packed weights under their names, at once or not at all; gives the bytes. OSError where that fails."""
        ...

    def open(self, path: Path) -> dict[str, PackedLinear | PackedExperts]:
        """All that a file holds, mapped into memory. KernelError for a damaged file, OSError for none."""
        ...


class DecoderLayer(NamedTuple):
    """A whole layer: hidden + attention(norm(hidden)), then + fc2(fc1(norm(hidden)))."""

    input_norm: NormWeights
    linear_qkv: PackedLinear
    head_norms: HeadNorms | None
    rotation: int
    """Which of a step's rotations."""
    kv_layer: int
    """Which layer of the cache."""
    attention: AttentionOptions
    linear_proj: PackedLinear
    mlp_norm: NormWeights
    linear_fc1: PackedLinear
    """With its activation."""
    linear_fc2: PackedLinear


class PackedLayers(Protocol):
    """Decoder layers, one after the other, as one operation."""

    def run(
        self,
        hidden: Tensor,
        rotations: tuple[Rotation | None, ...],
        kv_layers: list[KVLayer],
        kv_slots: Tensor,
        plan: AttentionPlan,
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]: the bits that the layers' operations give when they are called one by one."""
        ...


class KernelBackend(Protocol):
    """One device's implementation of the operations. All results have the dtype of the activations given.

    Activations are [T, ...] with a contiguous last axis; the other axes may have any stride.
    """

    @property
    def name(self) -> str:
        """For people: its name as in `InferenceConfig.kernels`, and the instruction set where that matters."""
        ...

    @property
    def device(self) -> device:
        """Where weights, activations and the KV cache live."""
        ...

    def free_memory_bytes(self) -> int:
        """Memory of the device that is not in use by anyone."""
        ...

    @property
    def packed_files(self) -> PackedFiles | None:
        """How to keep packed weights in files; None where the backend cannot."""
        ...

    def pack_linear(self, weight: Weight, bias: Tensor | None, activation: Activation | None = None) -> PackedLinear:
        """Brings a weight [out, in] and bias [out] into the layout `linear` wants; a copy, so they can be dropped."""
        ...

    def linear(self, x: Tensor, packed: PackedLinear, residual: Tensor | None = None) -> Tensor:
        """[T, in] -> [T, out], or [T, out / 2] when packed with a gated activation; then `residual` is added."""
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

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        """The paged cache, one part per layer; the null block is zero, the others need not be."""
        ...

    def clear_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> None:
        """Prepares blocks in all layers for a new owner: nothing that an earlier one left (a NaN, say) may reach it."""
        ...

    def read_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> Tensor:
        """What blocks hold, on the host: [blocks, bytes of a block over all layers] uint8, for `write_kv_blocks`."""
        ...

    def write_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int], contents: Tensor) -> None:
        """Puts back what `read_kv_blocks` gave, into these blocks of a cache of the same shape."""
        ...

    def release_unused_memory(self) -> None:
        """Gives the device what is freed but kept for later, such as a cache nobody holds any more."""
        ...

    def rotate_and_append(
        self, heads: Tensor, norms: HeadNorms | None, rotation: Rotation | None, kv: KVLayer, kv_slots: Tensor
    ) -> Tensor:
        """Norms and rotates queries and keys, and writes keys and values into the cache.

        `heads` [T, H + 2G, D] are queries, keys and values. They go to `kv_slots` [T] int64 = block id * B + offset,
        and all tokens of a row come in order of position. Returns the queries [T, H, D]. H may be 0: then it but
        writes (keys and values of an encoder's output).
        """
        ...

    def plan_attention(self, rows: AttentionRows, block_size: int) -> AttentionPlan:
        """Everything about a step's rows that all layers share; masks come later, per window."""
        ...

    def paged_attention(self, query: Tensor, kv: KVLayer, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
        """Causal attention of each row's new tokens over its cached and new ones. [T, H, D] -> [T, H, D]"""
        ...

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
        """Attention of an encoder: each token over all tokens of its row, without a cache. -> [T, H, D]

        Args:
            query: [T, H, D]
            key: [T, G, D]
            value: [T, G, D]
            lengths: tokens of each row, in order; their sum is T.
            scale: multiplies the scores.
            bias: [H, 2M + 1] float32, added to the scaled scores: query at position q and key at k get column
                clamp(k - q, -M, M) + M (T5's encoder).
        """
        ...

    def pack_layers(self, layers: Sequence[DecoderLayer]) -> PackedLayers | None:
        """Makes one operation of several layers; None where their operations are to be called one by one.

        Shares the packed matrices; norm weights may be copied.
        """
        ...

    def pack_experts(self, weights: ExpertWeights, activation: Activation) -> PackedExperts:
        """Brings experts into the layout `mix_experts` wants; a copy."""
        ...

    def mix_experts(self, x: Tensor, packed: PackedExperts, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """Sum over K of expert_weights[t, k] * expert(expert_ids[t, k], x[t]).

        [T, hidden], [T, K] int64, [T, K] float32 -> [T, hidden]
        """
        ...

    def max_of_rows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[R, V] float32 -> greatest logit, [R] float32, and its lowest id, [R] int64; NaN for a row that holds NaN."""
        ...

    def weigh(self, exponents: Tensor) -> Tensor:
        """Weights of tokens: [R, C] float32 -> [R, C] int64"""
        ...

    def sum_weights(self, rows: TemperedRows, thresholds: Tensor | None) -> Tensor:
        """Total weight of the tokens whose exponents reach their row's threshold, [R] float32 -> [R] int64; exact."""
        ...

    def draw(self, rows: TemperedRows, thresholds: Tensor | None, uniforms: Tensor) -> Tensor:
        """One token id per row among those that reach its threshold, by inverse cumulative weight in order of ids.

        [R] float32 thresholds, [R] float64 uniforms in [0, 1) -> [R] int64
        """
        ...

    def list_greatest(self, logits: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The greatest logits of some rows and their ids, greatest first; of equals at the end of the list any.

        [any number of rows, V] float32, [R] int64 -> [R, count] float32 and int64. Of a row with NaN it means nothing.
        """
        ...
