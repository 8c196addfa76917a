"""SelfAttention: query, key and value of new tokens, the append to the paged cache, attention, output projection."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kilotron.kernels.interface import AttentionOptions, HeadNorms, KernelBackend, Rotation
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.channel_order import order_of_heads, pairs_to_halves
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear, empty_parameter
from kilotron.models.layers.normalization import L2Norm, make_norm
from kilotron.models.transformer_config import TransformerConfig


class SelfAttention(Layer):
    """Causal self-attention of one layer over its part of the paged cache."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.layer = layer
        self.head_size = config.kv_channels
        self.core_attention = CoreAttention(config, kernels.device, layer)
        query_size = config.num_attention_heads * config.kv_channels
        kv_size = config.num_query_groups * config.kv_channels
        self.linear_qkv = Linear(
            kernels,
            config.hidden_size,
            (query_size, kv_size, kv_size),
            bias=config.add_qkv_bias,
            row_order=_order_of_qkv(config),
        )
        self.linear_proj = Linear(kernels, query_size, (config.hidden_size,), bias=config.add_proj_bias)
        self.relative_attention_bias: Any = None
        """A table of relative positions, for layers that bring one."""
        self.q_layernorm: Any = None
        self.k_layernorm: Any = None
        self.norms_each_head = config.qk_layernorm in ("head", "l2")
        if config.qk_layernorm != "none":
            self.q_layernorm = _make_head_norm(config, kernels, self.head_size if self.norms_each_head else query_size)
            self.k_layernorm = _make_head_norm(config, kernels, self.head_size if self.norms_each_head else kv_size)
        self.norms_in_kernel = config.qk_layernorm == "head" and config.normalization == "RMSNorm"
        self.norms_outside_kernel = config.qk_layernorm != "none" and not self.norms_in_kernel

    @property
    def options(self) -> AttentionOptions:
        """What the kernels need to know of this layer, loaded sinks included."""
        return self.core_attention.options

    def forward(
        self, hidden: Tensor, batch: InferenceBatch, rotation: Rotation | None, residual: Tensor | None = None
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; writes the new keys and values into the cache; `residual` is added."""
        projected = self.linear_qkv(hidden)
        if self.norms_outside_kernel:
            projected = self._normed(projected)
        heads = projected.view(len(hidden), -1, self.head_size)
        kv = batch.kv_layers[self.layer]
        query = self.kernels.rotate_and_append(heads, self.head_norms(), rotation, kv, batch.kv_slots)
        context = self.kernels.paged_attention(query, kv, batch.attention, self.options)
        return self.linear_proj(context.reshape(len(hidden), -1), residual)

    def head_norms(self) -> HeadNorms | None:
        """What the kernels do to each query and key before they rotate it."""
        if not self.norms_in_kernel:
            return None
        query, key = self.q_layernorm, self.k_layernorm
        return HeadNorms(query.weight, key.weight, query.epsilon, query.weight_offset)

    def _normed(self, projected: Tensor) -> Tensor:
        """Queries and keys normed over all heads at once (OLMo-2), or each head with another norm than the kernel's."""
        query, keys, values = projected.split(self.linear_qkv.output_sizes, dim=-1)
        if self.norms_each_head:
            query, keys = (x.unflatten(-1, (-1, self.head_size)) for x in (query, keys))
        query, keys = self.q_layernorm(query).flatten(1), self.k_layernorm(keys).flatten(1)
        return torch.cat((query, keys, values), dim=-1)


class CoreAttention(Layer):
    """What the attention of a layer is told: its scale and window, and its sinks where there are any."""

    float32_parameters = ("softmax_offset",)

    def __init__(self, config: TransformerConfig, device: torch.device, layer: int) -> None:
        super().__init__()
        num_heads = config.num_attention_heads
        self.softmax_offset = empty_parameter(num_heads) if config.softmax_type == "learnable" else None
        self._options = AttentionOptions(
            scale=config.softmax_scale_of(layer),
            window=config.window_of(layer),
            softcap=config.attn_logit_softcapping,
            sinks=torch.zeros(num_heads, device=device) if config.softmax_type == "off-by-one" else None,
        )

    def use_position_bias(self, bias: Tensor) -> None:
        """Scores get this bias by distance from now on; see `AttentionOptions`."""
        self._options = replace(self._options, position_bias=bias)

    @property
    def options(self) -> AttentionOptions:
        """With the sinks as they are loaded now."""
        if self.softmax_offset is None:
            return self._options
        return replace(self._options, sinks=self.softmax_offset)


def _make_head_norm(config: TransformerConfig, kernels: KernelBackend, size: int) -> Any:
    if config.qk_layernorm == "l2":
        return L2Norm(kernels, size, config.layernorm_epsilon)
    norm = make_norm(config, kernels, size)
    if config.rotary_interleaved:
        norm.row_order = pairs_to_halves(size, config.rotary_channels)
    return norm


def _order_of_qkv(config: TransformerConfig) -> Tensor | None:
    """Pairs of neighbouring channels become two halves in queries and keys alike, which leaves their products."""
    if not config.rotary_interleaved:
        return None
    num_rotated = config.num_attention_heads + config.num_query_groups
    rotated = order_of_heads(pairs_to_halves(config.kv_channels, config.rotary_channels), num_rotated)
    num_rows = (num_rotated + config.num_query_groups) * config.kv_channels
    return torch.cat((rotated, torch.arange(len(rotated), num_rows)))
