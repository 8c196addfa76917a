"""Encoder-decoder architectures: how their config.json is read and what their tensors are called.

Defaults are those of the architecture's class in transformers, because files leave out what equals them.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from kilotron.checkpoints import encoder_decoder_weight_names as weight_names
from kilotron.models.architectures import ACTIVATIONS, Architecture, read_activation, read_vocabulary
from kilotron.models.config_fields import ConfigFields
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.transformer_config import TransformerConfig

# T5 has relative positions and so no limit of its own; transformers takes any length. More is rarely of use and only
# makes tables larger, so a folder that says nothing (`n_positions`) gets this one.
RELATIVE_CONTEXT_LENGTH = 4096
OUTPUT_WEIGHTS = ("lm_head.weight", "lm_head.output_layer.weight")
OUTPUT_BIASES = ("final_logits_bias", "lm_head.output_layer.bias")


def read_t5(fields: ConfigFields) -> TransformerConfig:
    """v1.0 scales what goes into its output layer; v1.1, which saved `tie_word_embeddings: false`, does not."""
    scales = fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True))
    multiplier = fields.count("d_model", 512) ** -0.5 if scales else 1.0
    return _t5(fields, sizes=(6, 8, 2048), feed_forward="relu", logits_multiplier=multiplier)


def read_mt5(fields: ConfigFields) -> TransformerConfig:
    """T5 v1.1 with another vocabulary."""
    return _t5(fields, sizes=(8, 6, 1024), feed_forward="gated-gelu")


def read_umt5(fields: ConfigFields) -> TransformerConfig:
    """mT5 whose every layer has a table of positions."""
    scales = fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True))
    multiplier = fields.count("d_model", 512) ** -0.5 if scales else 1.0
    own = {"logits_multiplier": multiplier, "shares_position_bias": False}
    return _t5(fields, sizes=(8, 6, 1024), feed_forward="gated-gelu", **own)


def read_bart(fields: ConfigFields) -> TransformerConfig:
    """Learned positions, layer norms behind each residual, biases everywhere."""
    hidden_size, num_heads = fields.count("d_model", 1024), fields.count("decoder_attention_heads", 16)
    own = EncoderDecoderConfig(
        num_encoder_layers=fields.integer("encoder_layers", 12),
        num_encoder_attention_heads=fields.count("encoder_attention_heads", 16),
        encoder_ffn_hidden_size=fields.integer("encoder_ffn_dim", 4096),
        decoder_start_token_id=fields.integer("decoder_start_token_id", 2),
        forced_bos_token_id=_optional_id(fields, "forced_bos_token_id"),
        forced_eos_token_id=_optional_id(fields, "forced_eos_token_id", default=2),
        position_offset=2,
        has_embedding_layernorm=True,
        has_final_layernorm=False,
        has_output_bias=True,
    )
    return TransformerConfig(
        encoder_decoder=own,
        num_layers=fields.integer("decoder_layers", 12),
        hidden_size=hidden_size,
        ffn_hidden_size=fields.integer("decoder_ffn_dim", 4096),
        num_attention_heads=num_heads,
        num_query_groups=num_heads,
        kv_channels=hidden_size // num_heads,
        max_position_embeddings=fields.integer("max_position_embeddings", 1024),
        normalization="LayerNorm",
        layernorm_epsilon=1e-5,
        norm_placement="post_residual",
        add_qkv_bias=True,
        add_proj_bias=True,
        add_mlp_bias=True,
        gated_linear_unit=False,
        activation=read_activation(fields, "activation_function", "gelu"),
        position_embedding_type="learned_in_stack",
        embedding_multiplier=math.sqrt(hidden_size) if fields.flag("scale_embedding", False) else 1.0,
        **read_vocabulary(fields, is_tied=True, vocab_size=50265, eos_token_id=2),
    )


def find_encoder_decoder(name: str, fields: ConfigFields) -> Architecture | None:
    """What there is to know about an encoder-decoder architecture, which may depend on its config; None for others."""
    if name == "BartForConditionalGeneration":
        return Architecture(read_bart, weight_names.BART)
    readers = {
        "T5ForConditionalGeneration": (read_t5, "relu"),
        "MT5ForConditionalGeneration": (read_mt5, "gated-gelu"),
        "UMT5ForConditionalGeneration": (read_umt5, "gated-gelu"),
    }
    if name not in readers:
        return None
    reader, feed_forward = readers[name]
    is_gated = fields.text("feed_forward_proj", feed_forward).startswith("gated-")
    return Architecture(reader, weight_names.T5_GATED if is_gated else weight_names.T5)


ENCODER_DECODER_NAMES = (
    "BartForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "T5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
)


def tie_as_stored(config: TransformerConfig, tensor_names: Collection[str]) -> TransformerConfig:
    """Whether there is an output layer of its own, and a bias, is told by the tensors: T5's `tie_word_embeddings` says
    other things in other versions of transformers."""
    if config.encoder_decoder is None:
        return config
    is_untied = any(name in tensor_names for name in OUTPUT_WEIGHTS)
    own = config.encoder_decoder
    if tensor_names and own.has_output_bias:
        own = replace(own, has_output_bias=any(name in tensor_names for name in OUTPUT_BIASES))
    return replace(config, untie_embeddings_and_output_weights=is_untied, encoder_decoder=own)


def with_generation_config(config: TransformerConfig, generation_config: Mapping[str, Any]) -> TransformerConfig:
    """With the decoder's first and forced tokens as generation_config.json has them, where there is such a file: it
    counts, and not config.json, where older folders have them."""
    own = config.encoder_decoder
    if own is None or not generation_config:
        return config
    fields = ConfigFields(generation_config, "generation_config.json")
    start = fields.integer("decoder_start_token_id") if "decoder_start_token_id" in fields else None
    forced = [next(iter(fields.integers(f"forced_{kind}_token_id")), None) for kind in ("bos", "eos")]
    own = replace(
        own,
        decoder_start_token_id=own.decoder_start_token_id if start is None else start,
        forced_bos_token_id=forced[0],
        forced_eos_token_id=forced[1],
    )
    return replace(config, encoder_decoder=own)


def _t5(
    fields: ConfigFields, *, sizes: tuple[int, int, int], feed_forward: str, **own_fields: Any
) -> TransformerConfig:
    num_layers, num_heads, ffn_size = sizes
    num_layers = fields.integer("num_layers", num_layers)
    num_heads = fields.count("num_heads", num_heads)
    ffn_size = fields.integer("d_ff", ffn_size)
    is_gated, activation = _feed_forward(fields, feed_forward)
    own = EncoderDecoderConfig(
        num_encoder_layers=num_layers,
        num_encoder_attention_heads=num_heads,
        encoder_ffn_hidden_size=ffn_size,
        decoder_start_token_id=fields.integer("decoder_start_token_id", fields.integer("pad_token_id", 0)),
        num_position_buckets=fields.integer("relative_attention_num_buckets", 32),
        max_position_distance=fields.integer("relative_attention_max_distance", 128),
        **own_fields,
    )
    return TransformerConfig(
        encoder_decoder=own,
        num_layers=fields.integer("num_decoder_layers", num_layers),
        hidden_size=fields.count("d_model", 512),
        ffn_hidden_size=ffn_size,
        num_attention_heads=num_heads,
        num_query_groups=num_heads,
        kv_channels=fields.integer("d_kv", 64),
        max_position_embeddings=max(fields.integer("n_positions", 0), RELATIVE_CONTEXT_LENGTH),
        layernorm_epsilon=fields.number("layer_norm_epsilon", 1e-6),
        gated_linear_unit=is_gated,
        activation=activation,
        position_embedding_type="relative",
        softmax_scale=1.0,
        **read_vocabulary(fields, is_tied=True, vocab_size=32128, eos_token_id=1),
    )


def _feed_forward(fields: ConfigFields, default: str) -> tuple[bool, str]:
    """ "relu", or "gated-" and the gate's activation; plain "gated-gelu" means the tanh approximation."""
    kind = fields.text("feed_forward_proj", default)
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    if name not in ACTIVATIONS:
        raise fields.wrong("feed_forward_proj", f"one of {', '.join(ACTIVATIONS)}, with or without 'gated-' before it,")
    return kind.startswith("gated-"), ACTIVATIONS[name]


def _optional_id(fields: ConfigFields, name: str, default: int | None = None) -> int | None:
    """A null switches it off; only a missing field means the default."""
    if name not in fields.values:
        return default
    return fields.integer(name) if name in fields else None
