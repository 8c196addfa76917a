"""LatentSelfAttention: multi-head latent attention (MLA, DeepSeek-V2), with full keys and values in the cache."""

import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import KernelBackend, Rotation
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.attention import CoreAttention
from kilotron.models.layers.channel_order import order_of_heads, pairs_to_halves
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.layers.normalization import LayerNorm, RMSNorm, make_norm
from kilotron.models.transformer_config import LatentAttention, TransformerConfig


class LatentSelfAttention(Layer):
    """Queries, keys and values are expanded to all heads and cached like any others, filled up to one size.

    A head has its rotated channels first, as the kernels want them; the order of rows of the weights sees to it. A
    cache of the latent vectors themselves would be smaller, and needs kernels of its own.
    """

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        if config.latent_attention is None:
            raise ValueError("latent attention needs its sizes")
        sizes = config.latent_attention
        self.kernels = kernels
        self.layer = layer
        self.sizes = sizes
        self.core_attention = CoreAttention(config, kernels.device, layer)
        num_heads, hidden_size = config.num_attention_heads, config.hidden_size
        query_size = num_heads * sizes.head_size
        query_order = order_of_heads(_rotated_first(sizes), num_heads)
        if sizes.q_lora_rank is None:
            self.linear_q_proj = Linear(kernels, hidden_size, (query_size,), bias=False, row_order=query_order)
        else:
            self.linear_q_down_proj = Linear(kernels, hidden_size, (sizes.q_lora_rank,), bias=False)
            self.q_layernorm = _make_norm(config, sizes, kernels, sizes.q_lora_rank)
            self.linear_q_up_proj = Linear(kernels, sizes.q_lora_rank, (query_size,), bias=False, row_order=query_order)
        down_sizes = (sizes.kv_lora_rank, sizes.qk_pos_emb_head_dim)
        self.linear_kv_down_proj = Linear(
            kernels, hidden_size, down_sizes, bias=False, row_order=_order_of_kv_down(sizes)
        )
        self.kv_layernorm = _make_norm(config, sizes, kernels, sizes.kv_lora_rank)
        up_size = num_heads * (sizes.qk_head_dim + sizes.v_head_dim)
        self.linear_kv_up_proj = Linear(kernels, sizes.kv_lora_rank, (up_size,), bias=False)
        proj_size = num_heads * sizes.v_head_dim
        self.linear_proj = Linear(kernels, proj_size, (hidden_size,), bias=config.add_proj_bias)

    def forward(
        self, hidden: Tensor, batch: InferenceBatch, rotation: Rotation | None, residual: Tensor | None = None
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; writes the new keys and values into the cache; `residual` is added."""
        heads = self._filled_up(self._query(hidden), *self._keys_and_values(hidden))
        kv = batch.kv_layers[self.layer]
        query = self.kernels.rotate_and_append(heads, None, rotation, kv, batch.kv_slots)
        context = self.kernels.paged_attention(query, kv, batch.attention, self.core_attention.options)
        return self.linear_proj(context[..., : self.sizes.v_head_dim].reshape(len(hidden), -1), residual)

    def _query(self, hidden: Tensor) -> Tensor:
        """[T, hidden] -> [T, H, head size]"""
        if self.sizes.q_lora_rank is None:
            query = self.linear_q_proj(hidden)
        else:
            latent = self.linear_q_down_proj(hidden)
            query = self.linear_q_up_proj(latent if self.q_layernorm is None else self.q_layernorm(latent))
        return query.unflatten(-1, (-1, self.sizes.head_size))

    def _keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> [T, H, head size], [T, H, value size]"""
        latent, rotated = self.linear_kv_down_proj(hidden).split(self.linear_kv_down_proj.output_sizes, dim=-1)
        if self.kv_layernorm is not None:
            latent = self.kv_layernorm(latent)
        sizes = self.sizes
        expanded = self.linear_kv_up_proj(latent.contiguous()).unflatten(-1, (-1, sizes.qk_head_dim + sizes.v_head_dim))
        keys, values = expanded.split((sizes.qk_head_dim, sizes.v_head_dim), dim=-1)
        shared = rotated.unsqueeze(1).expand(-1, keys.shape[1], -1)
        return torch.cat((shared, keys), dim=-1), values

    def _filled_up(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[T, 3 H, cached head size]: zeros at the end of what is smaller, which change no product."""
        size = self.sizes.cached_head_size
        return torch.cat([functional.pad(x, (0, size - x.shape[-1])) for x in (query, keys, values)], dim=1)


def _make_norm(
    config: TransformerConfig, sizes: LatentAttention, kernels: KernelBackend, size: int
) -> RMSNorm | LayerNorm | None:
    return make_norm(config, kernels, size, sizes.norm_epsilon) if sizes.has_norms else None


def _rotated(sizes: LatentAttention) -> Tensor:
    """The order of the rotated channels."""
    size = sizes.qk_pos_emb_head_dim
    return pairs_to_halves(size, size) if sizes.rotary_interleaved else torch.arange(size)


def _rotated_first(sizes: LatentAttention) -> Tensor:
    """The order of a query's channels: stored are first those that are not rotated."""
    return torch.cat((sizes.qk_head_dim + _rotated(sizes), torch.arange(sizes.qk_head_dim)))


def _order_of_kv_down(sizes: LatentAttention) -> Tensor:
    return torch.cat((torch.arange(sizes.kv_lora_rank), sizes.kv_lora_rank + _rotated(sizes)))
