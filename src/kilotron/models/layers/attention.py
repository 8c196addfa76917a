"""SelfAttention: query, key and value of new tokens, the append to the paged cache, attention, output projection."""

from torch import Tensor, nn

from kilotron.kernels.interface import AttentionOptions, KernelBackend, Rotation
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.linear import Linear
from kilotron.models.layers.normalization import make_norm
from kilotron.models.transformer_config import TransformerConfig


class SelfAttention(nn.Module):
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
        self.norms_projection = config.qk_layernorm == "projection"
        self.q_layernorm: nn.Module | None = None
        self.k_layernorm: nn.Module | None = None
        if config.qk_layernorm != "none":
            self.q_layernorm = make_norm(config, kernels, query_size if self.norms_projection else config.kv_channels)
            self.k_layernorm = make_norm(config, kernels, kv_size if self.norms_projection else config.kv_channels)

    def forward(
        self, hidden: Tensor, batch: InferenceBatch, rotation: Rotation | None, residual: Tensor | None = None
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; writes the new keys and values into the cache; `residual` is added."""
        query, keys, values = self.linear_qkv(hidden).split(self.linear_qkv.output_sizes, dim=-1)
        query, keys = self._heads(query, self.q_layernorm), self._heads(keys, self.k_layernorm)
        values = self._heads(values, None)
        kv = batch.kv_layers[self.layer]
        query = self.kernels.rotate_and_append(query, keys, values, rotation, kv, batch.kv_slots)
        context = self.kernels.paged_attention(query, kv, batch.attention, self.options)
        return self.linear_proj(context.reshape(context.shape[0], -1), residual)

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """[T, heads * D] -> [T, heads, D], normed before or after the split."""
        if norm is not None and self.norms_projection:
            x = norm(x)
        x = x.view(x.shape[0], -1, self.head_size)
        if norm is not None and not self.norms_projection:
            x = norm(x)
        return x
