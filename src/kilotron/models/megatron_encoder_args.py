"""An encoder beside a decoder, as the arguments of Megatron's T5, and what Megatron's T5 has no arguments for."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.transformer_config import TransformerConfig


def encoder_args(config: TransformerConfig) -> dict[str, Any]:
    """What Megatron saves of a T5 besides what it saves of a GPT; nothing for decoders without an encoder."""
    own = config.encoder_decoder
    if own is None:
        return {}
    return {
        "num_layers": own.num_encoder_layers,
        "encoder_num_layers": own.num_encoder_layers,
        "decoder_num_layers": config.num_layers,
        "encoder_seq_length": config.max_position_embeddings,
        "decoder_seq_length": config.max_position_embeddings,
        "relative_attention_num_buckets": own.num_position_buckets,
        "relative_attention_max_distance": own.max_position_distance,
    }


def encoder_gaps(config: TransformerConfig) -> Iterator[str]:
    """What an encoder-decoder model needs that megatron-core's T5 does not have."""
    own = config.encoder_decoder
    if own is None:
        return
    yield from _position_gaps(config, own)
    sizes = (own.num_encoder_attention_heads, own.encoder_ffn_hidden_size)
    if sizes != (config.num_attention_heads, config.ffn_hidden_size):
        yield "an encoder with heads or an MLP of other sizes than the decoder's"
    if own.has_embedding_layernorm:
        yield "norms of embedded tokens"
    if not own.has_final_layernorm:
        yield "stacks without a norm at their end"
    if own.logits_multiplier != 1.0:
        yield "scaled hidden states in front of the output layer"
    if own.has_output_bias == config.untie_embeddings_and_output_weights:
        tied, has = ("untied", "a") if own.has_output_bias else ("tied", "no")
        yield f"{tied} output weights with {has} bias"


def without_decoder_start(config: TransformerConfig) -> TransformerConfig:
    """Without the tokens that a decoder must begin or end with: whoever runs Megatron gives them, not the model."""
    own = config.encoder_decoder
    if own is None:
        return config
    own = replace(own, decoder_start_token_id=None, forced_bos_token_id=None, forced_eos_token_id=None)
    return replace(config, encoder_decoder=own)


def _position_gaps(config: TransformerConfig, own: EncoderDecoderConfig) -> Iterator[str]:
    if config.position_embedding_type == "relative" and not own.shares_position_bias:
        yield "a table of relative positions in every layer"
    if config.position_embedding_type == "learned_in_stack" and not own.shares_position_table:
        yield "a table of learned positions in each stack"
