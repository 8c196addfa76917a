"""EncoderAttention: every token of an encoder's input sees all of that input. Nothing is cached."""

from typing import Any

import numpy as np
from torch import Tensor

from kilotron.kernels.interface import KernelBackend
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.layers.relative_position_bias import RelativePositionBias
from kilotron.models.transformer_config import TransformerConfig


class EncoderAttention(Layer):
    """Bidirectional self-attention of one encoder layer."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.head_size = config.kv_channels
        self.scale = config.softmax_scale_of(layer)
        size = config.num_attention_heads * config.kv_channels
        self.linear_qkv = Linear(kernels, config.hidden_size, (size, size, size), bias=config.add_qkv_bias)
        self.linear_proj = Linear(kernels, size, (config.hidden_size,), bias=config.add_proj_bias)
        self.relative_attention_bias: Any = None
        if has_own_bias(config, layer):
            self.relative_attention_bias = RelativePositionBias(config, is_causal=False)
        self.position_bias: Tensor | None = None

    def forward(self, hidden: Tensor, lengths: np.ndarray, residual: Tensor) -> Tensor:
        """[E, hidden] of inputs with these lengths -> [E, hidden]; `residual` is added."""
        heads = self.linear_qkv(hidden).view(len(hidden), -1, self.head_size)
        query, key, value = heads.chunk(3, dim=1)
        context = self.kernels.full_attention(query, key, value, lengths, scale=self.scale, bias=self.position_bias)
        return self.linear_proj(context.reshape(len(hidden), -1), residual)


def has_own_bias(config: TransformerConfig, layer: int) -> bool:
    """Whether a layer has a table of relative positions."""
    own = config.encoder_decoder
    is_relative = config.position_embedding_type == "relative" and own is not None
    return is_relative and (layer == 0 or not own.shares_position_bias)  # type: ignore[union-attr]
