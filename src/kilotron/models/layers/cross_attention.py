"""CrossAttention: a decoder's tokens attend to their request's encoder output, kept in the paged cache."""

from torch import Tensor

from kilotron.kernels.interface import AttentionOptions, KernelBackend, KVLayer
from kilotron.models.inference_batch import EncoderBatch
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.transformer_config import TransformerConfig


class CrossAttention(Layer):
    """Cross-attention of one decoder layer. Its blocks have the shape of the layer's self-attention."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.layer = layer
        self.head_size = config.kv_channels
        self.options = AttentionOptions(scale=config.softmax_scale_of(layer))
        query_size = config.num_attention_heads * config.kv_channels
        kv_size = config.num_query_groups * config.kv_channels
        self.linear_q = Linear(kernels, config.hidden_size, (query_size,), bias=config.add_qkv_bias)
        self.linear_kv = Linear(kernels, config.hidden_size, (kv_size, kv_size), bias=config.add_qkv_bias)
        self.linear_proj = Linear(kernels, query_size, (config.hidden_size,), bias=config.add_proj_bias)

    def write(self, encoded: Tensor, kv_layers: list[KVLayer], kv_slots: Tensor) -> None:
        """Encoder output [W, hidden] -> keys and values in the cache."""
        heads = self.linear_kv(encoded).view(len(encoded), -1, self.head_size)
        self.kernels.rotate_and_append(heads, None, None, kv_layers[self.layer], kv_slots)

    def forward(self, hidden: Tensor, encoder: EncoderBatch, kv_layers: list[KVLayer], residual: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]; `residual` is added."""
        query = self.linear_q(hidden).view(len(hidden), -1, self.head_size)
        context = self.kernels.paged_attention(query, kv_layers[self.layer], encoder.cross_attention, self.options)
        return self.linear_proj(context.reshape(len(hidden), -1), residual)
