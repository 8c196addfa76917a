"""Tests of the config.json that Megatron's arguments keep: what it adds, and when it is not believed."""

import json
from typing import Any

import pytest

from kilotron.errors import CheckpointError, UnknownArchitectureError
from kilotron.models.encoder_decoder_architectures import ENCODER_DECODER_NAMES
from kilotron.models.huggingface_config import write_huggingface_config
from kilotron.models.megatron_args import megatron_args
from kilotron.models.registry import find_architecture, read_transformer_config
from kilotron.models.transformer_config import TransformerConfig

GEMMA: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "eos_token_id": 1,
}


T5_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
}


def saved(**changed: Any) -> TransformerConfig:
    """What is read of the arguments of a converted Gemma, some of them changed."""
    args = megatron_args(read_transformer_config(GEMMA)) | {"hf_config_json": json.dumps(GEMMA)}
    return read_transformer_config({"architectures": ["MegatronGPT"], **args, **changed})


def test_it_says_what_megatrons_arguments_cannot() -> None:
    assert saved() == read_transformer_config(GEMMA)
    assert saved().norm_placement == "sandwich"


def test_sizes_of_the_vocabulary_and_the_dtype_may_change() -> None:
    config = saved(padded_vocab_size=128, bf16=True, params_dtype="bfloat16")

    assert config.vocab_size == 128
    assert str(config.params_dtype) == "torch.bfloat16"
    assert config.norm_placement == "sandwich"


@pytest.mark.parametrize("changed", [{"ffn_hidden_size": 32}, {"rotary_base": 5000}, {"layernorm_epsilon": 1e-3}])
def test_arguments_that_contradict_it_count(changed: dict[str, Any]) -> None:
    assert saved(**changed).norm_placement == "pre"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architectures": ["Unheard"]}', '{"architectures": 3}', None, 7])
def test_a_text_that_is_no_config_is_passed_over(text: Any) -> None:
    assert saved(hf_config_json=text).norm_placement == "pre"


def test_a_structure_that_no_architecture_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"comes nearest, and differs in .*norm_placement"):
        write_huggingface_config(read_transformer_config(GEMMA))


def test_an_architecture_that_is_not_written_is_refused_by_name() -> None:
    with pytest.raises(UnknownArchitectureError, match="'Gemma2ForCausalLM'"):
        write_huggingface_config(read_transformer_config(GEMMA), "Gemma2ForCausalLM")


def saved_encoder_decoder(name: str, **changed: Any) -> dict[str, Any]:
    """The arguments of a converted T5 or BART, some of them changed."""
    kept = {"architectures": [name], **T5_SIZES}
    args = megatron_args(read_transformer_config(kept)) | {"hf_config_json": json.dumps(kept)}
    return {"architectures": ["MegatronT5"], **args, **changed}


@pytest.mark.parametrize("name", ENCODER_DECODER_NAMES)
def test_an_encoder_decoder_is_what_it_was(name: str) -> None:
    read = read_transformer_config(saved_encoder_decoder(name), ["lm_head.output_layer.bias"])

    tensors = ["final_logits_bias"] if name.startswith("Bart") else []
    assert read == read_transformer_config({"architectures": [name], **T5_SIZES}, tensors)


@pytest.mark.parametrize("name", ENCODER_DECODER_NAMES)
@pytest.mark.parametrize("changed", [{"encoder_num_layers": 5}, {"hidden_size": 32}, {"hf_config_json": "{"}])
def test_an_encoder_decoder_whose_arguments_contradict_it_is_refused(name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="contradict hf_config_json"):
        read_transformer_config(saved_encoder_decoder(name, **changed))


def test_a_decoder_among_the_arguments_of_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(CheckpointError, match="contradict hf_config_json"):
        read_transformer_config(
            saved_encoder_decoder("T5ForConditionalGeneration", hf_config_json=json.dumps(GEMMA)),
        )


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("T5ForConditionalGeneration", "encoder_relative_pos_emb.relative_attention_bias.weight"),
        ("UMT5ForConditionalGeneration", "encoder.layers.0.self_attention.relative_attention_bias.weight"),
    ],
)
def test_only_tables_that_megatron_has_a_place_for_have_its_names(name: str, table: str) -> None:
    names = find_architecture(saved_encoder_decoder(name)).weight_names

    source = names.source_of("encoder.layers.0.self_attention.relative_attention_bias.weight", ())
    assert source.stacks == ((table,),)
