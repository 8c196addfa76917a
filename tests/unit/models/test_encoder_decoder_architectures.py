"""How configurations of encoder-decoder models are read."""

from typing import Any

import pytest

from kilotron.errors import CheckpointError, UnknownArchitectureError
from kilotron.models.encoder_decoder_architectures import with_generation_config
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.registry import read_transformer_config
from kilotron.models.transformer_config import TransformerConfig


def read(name: str, *tensors: str, **fields: Any) -> TransformerConfig:
    return read_transformer_config({"architectures": [f"{name}ForConditionalGeneration"], **fields}, tensors)


def own_of(config: TransformerConfig) -> EncoderDecoderConfig:
    assert config.encoder_decoder is not None
    return config.encoder_decoder


def test_what_a_file_leaves_out_is_as_in_transformers() -> None:
    config = read("T5")
    assert (config.num_layers, config.hidden_size, config.num_attention_heads, config.kv_channels) == (6, 512, 8, 64)
    assert (config.vocab_size, config.eos_token_ids, own_of(config).decoder_start_token_id) == (32128, (1,), 0)
    bart = read("Bart")
    assert (bart.num_layers, bart.hidden_size, bart.eos_token_ids) == (12, 1024, (2,))
    assert (own_of(bart).forced_eos_token_id, own_of(bart).decoder_start_token_id) == (2, 2)


@pytest.mark.parametrize(
    ("fields", "multiplier"),
    [
        ({}, 16**-0.5),
        ({"tie_word_embeddings": False}, 1.0),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, 1.0),
    ],
)
def test_only_t5_of_the_first_version_scales_what_goes_into_its_output_layer(
    fields: dict[str, Any], multiplier: float
) -> None:
    assert own_of(read("T5", d_model=16, **fields)).logits_multiplier == multiplier
    assert own_of(read("MT5", d_model=16, **fields)).logits_multiplier == 1.0


def test_the_tensors_tell_whether_there_is_an_output_layer() -> None:
    assert not read("T5", tie_word_embeddings=False).untie_embeddings_and_output_weights
    assert read("T5", "lm_head.weight").untie_embeddings_and_output_weights


@pytest.mark.parametrize(
    ("kind", "is_gated", "activation"),
    [("relu", False, "relu"), ("gated-gelu", True, "gelu_tanh"), ("gated-silu", True, "silu"), ("gelu", False, "gelu")],
)
def test_the_feed_forward_part_is_named_in_one_word(kind: str, is_gated: bool, activation: str) -> None:
    config = read("T5", feed_forward_proj=kind)
    assert (config.gated_linear_unit, config.activation) == (is_gated, activation)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("T5", {"feed_forward_proj": "gated-tanhh"}, "feed_forward_proj"),
        ("T5", {"relative_attention_num_buckets": 2}, "num_position_buckets"),
        ("T5", {"num_layers": 0}, "num_encoder_layers"),
        ("Bart", {"encoder_layers": 0}, "num_encoder_layers"),
        ("Bart", {"activation_function": "tanh"}, "activation_function"),
    ],
)
def test_what_is_impossible_is_named(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _ = read(name, **fields).encoder


def test_similar_names_are_suggested() -> None:
    with pytest.raises(UnknownArchitectureError, match="Did you mean T5ForConditionalGeneration"):
        read("LongT5")


def test_a_generation_config_counts_where_there_is_one() -> None:
    config = read("Bart", forced_bos_token_id=0, decoder_start_token_id=2)
    assert own_of(config).forced_bos_token_id == 0
    assert with_generation_config(config, {}) is config
    newer = own_of(with_generation_config(config, {"forced_bos_token_id": 5, "decoder_start_token_id": 7}))
    assert (newer.forced_bos_token_id, newer.forced_eos_token_id, newer.decoder_start_token_id) == (5, None, 7)


def test_an_encoder_may_have_other_heads_than_its_decoder() -> None:
    config = read("Bart", d_model=32, encoder_attention_heads=2, decoder_attention_heads=4)
    assert (config.encoder.kv_channels, config.kv_channels) == (16, 8)
