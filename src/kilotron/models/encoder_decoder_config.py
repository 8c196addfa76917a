"""EncoderDecoderConfig: what a model with an encoder has besides its decoder, which TransformerConfig describes.

Knows nothing of file formats and holds no weights.
"""

from dataclasses import dataclass

from kilotron.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderConfig:
    """The encoder's own sizes, and what T5 and BART do that decoder-only models do not."""

    num_encoder_layers: int
    num_encoder_attention_heads: int
    encoder_ffn_hidden_size: int

    decoder_start_token_id: int | None = None
    """The decoder's first token, in front of whatever it is given. None: it begins with what it is given, and if that
    is nothing with the tokenizer's beginning of a sequence (Megatron)."""
    forced_bos_token_id: int | None = None
    """Must be generated first, where the decoder is given nothing (BART)."""
    forced_eos_token_id: int | None = None
    """Must be the last token that a request may generate (BART)."""

    num_position_buckets: int = 32
    """Relative positions: rows of the table."""
    max_position_distance: int = 128
    """Relative positions: all distances from here on share a bucket."""
    shares_position_bias: bool = True
    """Relative positions: the first layer's table serves all layers of its stack (not UMT5)."""
    shares_position_table: bool = False
    """Learned positions: both stacks look into one table (Megatron)."""
    position_offset: int = 0
    """Learned positions: row of position 0 (BART: 2)."""
    has_embedding_layernorm: bool = False
    """Each stack norms its embedded tokens (BART)."""
    has_final_layernorm: bool = True
    """A norm follows each stack's last layer (T5)."""
    logits_multiplier: float = 1.0
    """Multiplies the hidden states in front of the output layer (T5 v1.0)."""
    has_output_bias: bool = False

    def __post_init__(self) -> None:
        for field in ("num_encoder_layers", "num_encoder_attention_heads", "encoder_ffn_hidden_size"):
            if getattr(self, field) <= 0:
                raise CheckpointError(f"{field} = {getattr(self, field)!r}: must be positive")
        if self.num_position_buckets < 4 or self.max_position_distance <= self.num_position_buckets // 2:
            raise CheckpointError(
                f"num_position_buckets = {self.num_position_buckets}, max_position_distance = "
                f"{self.max_position_distance}: at least 4 buckets are needed, and a distance above half of them"
            )
