"""SelfAttention: query, key and value of new tokens, the append to the paged cache, attention, output projection."""

from typing import Any

import torch
from torch import Tensor

from kilotron.kernels.interface import AttentionOptions, HeadNorms, KernelBackend, Rotation
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.layers.normalization import make_norm
from kilotron.models.transformer_config import TransformerConfig


class SelfAttention(Layer):
    """Causal self-attention of one layer over its part of the paged cache."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.layer = layer
        self.head_size = config.kv_channels
        self.options = AttentionOptions(
            scale=config.softmax_scale_of(layer),
            window=config.window_of(layer),
            softcap=config.attn_logit_softcapping,
        )
        query_size = config.num_attention_heads * config.kv_channels
        kv_size = config.num_query_groups * config.kv_channels
        self.linear_qkv = Linear(kernels, config.hidden_size, (query_size, kv_size, kv_size), bias=config.add_qkv_bias)
        self.linear_proj = Linear(kernels, query_size, (config.hidden_size,), bias=config.add_proj_bias)
        self.relative_attention_bias: Any = None
        """A table of relative positions, for layers that bring one."""
        self.q_layernorm: Any = None
        self.k_layernorm: Any = None
        self.norms_each_head = config.qk_layernorm == "head"
        if config.qk_layernorm != "none":
            self.q_layernorm = make_norm(config, kernels, self.head_size if self.norms_each_head else query_size)
            self.k_layernorm = make_norm(config, kernels, self.head_size if self.norms_each_head else kv_size)
        self.norms_in_kernel = self.norms_each_head and config.normalization == "RMSNorm"
        self.norms_outside_kernel = config.qk_layernorm != "none" and not self.norms_in_kernel

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
