"""config.json files, of older and newer transformers, become the TransformerConfig they mean."""

from typing import Any

import pytest
import torch

from kilotron.errors import CheckpointError, UnknownArchitectureError
from kilotron.models.architectures import ARCHITECTURES
from kilotron.models.registry import find_architecture, read_transformer_config
from kilotron.models.transformer_config import TransformerConfig

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


def read(architecture: str, **fields: Any) -> TransformerConfig:
    return read_transformer_config({"architectures": [architecture], **SIZES, **fields})


def test_llama_31_in_the_form_of_its_release() -> None:
    scaling = {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    config = read(
        "LlamaForCausalLM",
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=scaling,
        torch_dtype="bfloat16",
        eos_token_id=[128001, 128008],
        rms_norm_eps=1e-5,
    )
    assert (config.rotary_base, config.num_query_groups, config.kv_channels) == (500000.0, 2, 16)
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.original_max_position_embeddings) == ("llama3", 8192)
    assert config.params_dtype is torch.bfloat16
    assert config.eos_token_ids == (128001, 128008)
    assert config.context_length == 131072


@pytest.mark.parametrize(
    ("kind", "extra", "context_length"),
    [
        ("linear", {}, 8192),
        ("dynamic", {}, 8192),
        ("yarn", {"original_max_position_embeddings": 1024}, 4096),
        ("llama3", {"low_freq_factor": 1, "high_freq_factor": 4}, 2048),
    ],
)
def test_old_and_new_rope_fields_mean_the_same(kind: str, extra: dict[str, Any], context_length: int) -> None:
    old = read("LlamaForCausalLM", rope_theta=5e5, rope_scaling={"type": kind, "factor": 4.0, **extra})
    new = read("LlamaForCausalLM", rope_parameters={"rope_theta": 5e5, "rope_type": kind, "factor": 4.0, **extra})
    assert old == new
    assert old.context_length == context_length


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_phi3_longrope_under_all_the_names_it_had(name: str) -> None:
    factors = [1.0 + i / 8 for i in range(8)]
    config = read(
        "Phi3ForCausalLM",
        original_max_position_embeddings=512,
        rope_scaling={"type": name, "short_factor": factors, "long_factor": factors},
        sliding_window=128,
    )
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("longrope", 4.0)
    assert config.rope_scaling.original_max_position_embeddings == 512
    assert config.layer_windows == (128,) * 4


def test_gemma3_in_the_form_of_its_release() -> None:
    config = read(
        "Gemma3ForCausalLM",
        head_dim=32,
        rope_theta=1e6,
        rope_local_base_freq=10000,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        sliding_window=512,
        sliding_window_pattern=2,
    )
    assert (config.rotary_base, config.local_rotary_base) == (1e6, 1e4)
    assert config.rope_scaling is not None
    assert config.rope_scaling.kind == "linear"
    assert config.layer_windows == (512, None, 512, None)
    assert not config.untie_embeddings_and_output_weights
    assert config.context_length == 2048


def test_gemma2_without_the_fields_it_leaves_to_defaults() -> None:
    config = read("Gemma2ForCausalLM", head_dim=32)
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.layer_windows == (4096, None, 4096, None)
    assert config.embedding_multiplier == 8.0


def test_pythia_in_the_form_of_its_release() -> None:
    config = read("GPTNeoXForCausalLM", rotary_pct=0.5, rotary_emb_base=20000)
    assert (config.rotary_percent, config.rotary_base, config.use_parallel_residual) == (0.5, 20000.0, True)


def test_gpt2_in_the_form_of_its_release() -> None:
    config = read_transformer_config(
        {"architectures": ["GPT2LMHeadModel"], "n_embd": 48, "n_head": 4, "n_layer": 2, "vocab_size": 50257}
    )
    assert (config.ffn_hidden_size, config.max_position_embeddings, config.activation) == (192, 1024, "gelu_tanh")
    assert not config.untie_embeddings_and_output_weights


def test_qwen2_windows_apply_from_max_window_layers_on_and_only_when_switched_on() -> None:
    fields = {"sliding_window": 32, "max_window_layers": 3}
    assert read("Qwen2ForCausalLM", **fields, use_sliding_window=True).layer_windows == (None, None, None, 32)
    assert read("Qwen2ForCausalLM", **fields, use_sliding_window=False).layer_windows == ()


@pytest.mark.parametrize("field", ["num_experts", "num_local_experts"])
def test_qwen3_moe_counts_its_experts_under_both_names(field: str) -> None:
    config = read("Qwen3MoeForCausalLM", **{field: 16}, mlp_only_layers=[0], moe_intermediate_size=8)
    assert config.num_moe_experts == 16
    assert [config.is_moe_layer(layer) for layer in range(4)] == [False, True, True, True]


def test_mistral_with_a_null_window_sees_everything() -> None:
    assert read("MistralForCausalLM", sliding_window=None).layer_windows == ()
    assert read("MistralForCausalLM").layer_windows == (4096,) * 4


def test_an_unknown_architecture_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"Did you mean LlamaForCausalLM\?") as error:
        find_architecture({"architectures": ["LLamaForCausalLM"]})
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_a_config_without_architectures_lists_the_known_ones() -> None:
    with pytest.raises(UnknownArchitectureError, match="Qwen3ForCausalLM"):
        find_architecture({})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_size": "64"}, "hidden_size = '64': a whole number is needed"),
        ({"num_key_value_heads": 3}, "num_query_groups = 3 does not divide num_attention_heads = 4"),
        ({"hidden_act": "xielu"}, "hidden_act = 'xielu': one of silu"),
        ({"rope_scaling": {"type": "mrope"}}, "type = 'mrope': one of default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling has no 'factor'"),
        ({"torch_dtype": "int8"}, "torch_dtype = 'int8': one of float32"),
        ({"num_hidden_layers": 0}, "num_layers = 0: must be positive"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: a whole number above 0 is needed"),
        ({"hidden_size": -64}, "hidden_size = -64: a whole number above 0 is needed"),
        ({"head_dim": 5}, "rotation needs an even number"),
        ({"attention_bias": 1}, "attention_bias = 1: true or false is needed"),
    ],
)
def test_an_impossible_field_is_named_with_its_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message.replace("'", ".").replace("?", r"\?")):
        read("LlamaForCausalLM", **fields)


def test_longrope_needs_one_factor_per_frequency() -> None:
    for long_factor, number in (([1.0] * 7, 7), (None, 0)):
        scaling = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": long_factor}
        with pytest.raises(CheckpointError, match=f"long_factor has {number} entries, 8 are needed"):
            read("Phi3ForCausalLM", rope_scaling=scaling)


@pytest.mark.parametrize("value", [0, -256])
def test_a_scale_that_has_no_root_is_refused(value: int) -> None:
    with pytest.raises(CheckpointError, match=f"query_pre_attn_scalar = {value}: a number above 0 is needed"):
        read("Gemma2ForCausalLM", query_pre_attn_scalar=value)


def test_bidirectional_gemma_is_refused() -> None:
    for architecture in ("Gemma2ForCausalLM", "Gemma3ForCausalLM"):
        with pytest.raises(CheckpointError, match="only causal attention is implemented"):
            read(architecture, use_bidirectional_attention=True)


def test_unknown_layer_types_are_refused() -> None:
    with pytest.raises(CheckpointError, match="linear_attention"):
        read("Gemma2ForCausalLM", head_dim=16, layer_types=["linear_attention"] * 4)


def test_more_chosen_experts_than_there_are_is_refused() -> None:
    with pytest.raises(CheckpointError, match="moe_router_topk = 9 exceeds num_moe_experts = 8"):
        read("MixtralForCausalLM", num_experts_per_tok=9)
