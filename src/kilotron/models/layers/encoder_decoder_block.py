"""Encoder and CrossDecoder: the two stacks of an encoder-decoder model.

Each adds positions to embedded tokens, runs its layers and norms what comes out, where a config says so.
"""

from typing import Any

from torch import Tensor, nn

from kilotron.kernels.interface import KernelBackend
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.inference_batch import EncoderBatch, InferenceBatch
from kilotron.models.layers.attention import SelfAttention
from kilotron.models.layers.cross_attention import CrossAttention
from kilotron.models.layers.embedding import EmbeddingTable
from kilotron.models.layers.encoder_attention import EncoderAttention, has_own_bias
from kilotron.models.layers.feed_forward import MLP
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.normalization import make_norm
from kilotron.models.layers.relative_position_bias import RelativePositionBias
from kilotron.models.transformer_config import TransformerConfig


class _NormedLayer(Layer):
    """A layer whose norms stand before their sub-layers (T5), or after the residual is added (BART)."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        self.norms_after = config.norm_placement == "post_residual"
        self.input_layernorm = make_norm(config, kernels)
        self.pre_mlp_layernorm = make_norm(config, kernels)
        self.mlp = MLP(config, kernels)

    def before(self, norm: Any, hidden: Tensor) -> Tensor:
        """What a sub-layer reads."""
        return hidden if self.norms_after else norm(hidden)

    def after(self, norm: Any, hidden: Tensor) -> Tensor:
        """What becomes of a sub-layer's output, its residual added."""
        return norm(hidden) if self.norms_after else hidden

    def run_mlp(self, hidden: Tensor) -> Tensor:
        """The last sub-layer."""
        return self.after(self.pre_mlp_layernorm, self.mlp(self.before(self.pre_mlp_layernorm, hidden), hidden))


class EncoderLayer(_NormedLayer):
    """Bidirectional attention and MLP."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__(config, kernels)
        self.self_attention = EncoderAttention(config, kernels, layer)

    def forward(self, hidden: Tensor, batch: EncoderBatch) -> Tensor:
        """[E, hidden] -> [E, hidden]"""
        norm = self.input_layernorm
        hidden = self.after(norm, self.self_attention(self.before(norm, hidden), batch.lengths, hidden))
        return self.run_mlp(hidden)

    def use_position_bias(self, bias: Tensor) -> None:
        """Scores get this bias from now on."""
        self.self_attention.position_bias = bias


class CrossDecoderLayer(_NormedLayer):
    """Causal attention, attention to the encoder's output, and MLP."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__(config, kernels)
        self.self_attention = SelfAttention(config, kernels, layer)
        if has_own_bias(config, layer):
            self.self_attention.relative_attention_bias = RelativePositionBias(config, is_causal=True)
        self.pre_cross_attn_layernorm = make_norm(config, kernels)
        self.cross_attention = CrossAttention(config, kernels, layer)

    def forward(self, hidden: Tensor, batch: InferenceBatch, encoder: EncoderBatch) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        norm = self.input_layernorm
        hidden = self.after(norm, self.self_attention(self.before(norm, hidden), batch, None, hidden))
        norm = self.pre_cross_attn_layernorm
        attended = self.cross_attention(self.before(norm, hidden), encoder, batch.kv_layers, hidden)
        return self.run_mlp(self.after(norm, attended))

    def use_position_bias(self, bias: Tensor) -> None:
        """Scores get this bias from now on."""
        self.self_attention.core_attention.use_position_bias(bias)


class _Stack(Layer):
    """Layers of one kind, with what surrounds them."""

    def __init__(self, config: TransformerConfig, own: EncoderDecoderConfig, kernels: KernelBackend, kind: Any) -> None:
        super().__init__()
        self.position_offset = own.position_offset
        self.position_embeddings: EmbeddingTable | None = None
        if config.position_embedding_type == "learned_in_stack":
            rows = config.max_position_embeddings + own.position_offset
            self.position_embeddings = EmbeddingTable(kernels, rows, config.hidden_size)
        self.embedding_layernorm: Any = make_norm(config, kernels) if own.has_embedding_layernorm else nn.Identity()
        self.layers = nn.ModuleList(kind(config, kernels, layer) for layer in range(config.num_layers))
        self.final_layernorm: Any = make_norm(config, kernels) if own.has_final_layernorm else nn.Identity()

    def embed(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Embedded tokens [n, hidden] with their positions [n]."""
        if self.position_embeddings is not None:
            hidden = hidden + self.position_embeddings(positions + self.position_offset)
        return self.embedding_layernorm(hidden)

    def pack(self) -> None:
        """Spreads the loaded tables of relative positions over the layers."""
        bias = None
        layers: Any = self.layers
        for layer in layers:
            table = layer.self_attention.relative_attention_bias
            bias = bias if table is None else table()
            if bias is not None:
                layer.use_position_bias(bias)

    def unpack(self) -> None:
        """Nothing to do: what `pack` made is replaced by the next `pack`."""


class Encoder(_Stack):
    """Encoder inputs to hidden states."""

    def __init__(self, config: TransformerConfig, own: EncoderDecoderConfig, kernels: KernelBackend) -> None:
        super().__init__(config, own, kernels, EncoderLayer)

    def forward(self, hidden: Tensor, batch: EncoderBatch) -> Tensor:
        """Embedded tokens [E, hidden] -> [E, hidden]"""
        hidden = self.embed(hidden, batch.positions)
        for layer in self.layers:
            hidden = layer(hidden, batch)
        return self.final_layernorm(hidden)


class CrossDecoder(_Stack):
    """A decoder whose layers also attend to the encoder's output."""

    def __init__(self, config: TransformerConfig, own: EncoderDecoderConfig, kernels: KernelBackend) -> None:
        super().__init__(config, own, kernels, CrossDecoderLayer)

    def write(self, encoded: Tensor, batch: InferenceBatch, encoder: EncoderBatch) -> None:
        """Every layer's keys and values of encoder output [W, hidden] go to the cache."""
        layers: Any = self.layers
        for layer in layers:
            layer.cross_attention.write(encoded, batch.kv_layers, encoder.kv_slots)

    def forward(self, hidden: Tensor, batch: InferenceBatch, encoder: EncoderBatch) -> Tensor:
        """Embedded tokens [T, hidden] -> [S + P, hidden], only where the batch asks for logits."""
        hidden = self.embed(hidden, batch.positions)
        for layer in self.layers:
            hidden = layer(hidden, batch, encoder)
        return self.final_layernorm(hidden[batch.logits_index])
