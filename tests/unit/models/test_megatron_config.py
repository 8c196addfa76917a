"""The arguments that Megatron saves become the TransformerConfig they mean, traps included."""

import contextlib
import math
from typing import Any

import pytest
import torch

from kilotron.errors import CheckpointError
from kilotron.models.registry import read_transformer_config
from kilotron.models.transformer_config import TransformerConfig

SIZES: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "num_query_groups": 1,
    "group_query_attention": False,
    "max_position_embeddings": 2048,
    "padded_vocab_size": 384,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "moe_router_topk": 4, "moe_ffn_hidden_size": 32, "swiglu": True}
LATENT: dict[str, Any] = {
    "multi_latent_attention": True,
    "position_embedding_type": "rope",
    "kv_lora_rank": 24,
    "qk_head_dim": 12,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
}


def read(**args: Any) -> TransformerConfig:
    return read_transformer_config({"architectures": ["MegatronGPT"], **SIZES, **args})


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        # The number of query groups is 1 in the arguments of plain multi-head models.
        ({}, {"num_query_groups": 4, "kv_channels": 16}),
        ({"group_query_attention": True, "num_query_groups": 2}, {"num_query_groups": 2}),
        ({"kv_channels": None}, {"kv_channels": 16}),
        ({"kv_channels": 24}, {"kv_channels": 24}),
        # Biases.
        ({}, {"add_qkv_bias": True, "add_proj_bias": True, "add_mlp_bias": True}),
        ({"add_bias_linear": False}, {"add_qkv_bias": False, "add_proj_bias": False, "add_mlp_bias": False}),
        ({"add_bias_linear": False, "add_qkv_bias": True}, {"add_qkv_bias": True, "add_proj_bias": False}),
        # GELU is the tanh approximation where it is fused with its bias.
        ({}, {"activation": "gelu_tanh", "gated_linear_unit": False}),
        ({"bias_gelu_fusion": False}, {"activation": "gelu"}),
        ({"add_bias_linear": False}, {"activation": "gelu"}),
        ({"bias_gelu_fusion": False, "openai_gelu": True}, {"activation": "gelu_tanh"}),
        ({"swiglu": True}, {"activation": "silu", "gated_linear_unit": True}),
        ({"squared_relu": True}, {"activation": "relu2", "gated_linear_unit": False}),
        (
            {"activation_func": "gelu", "gated_linear_unit": True},
            {"activation": "gelu_tanh", "gated_linear_unit": True},
        ),
        ({"activation_func": "silu"}, {"activation": "silu", "gated_linear_unit": False}),
        (
            {"quick_geglu": True, "activation_func_clamp_value": 7.0, "glu_linear_offset": 1.0},
            {
                "activation": "quick_gelu",
                "gated_linear_unit": True,
                "activation_clamp": 7.0,
                "glu_linear_offset": 1.0,
            },
        ),
        # Only gates are clamped.
        ({"squared_relu": True, "activation_func_clamp_value": 7.0}, {"activation_clamp": None}),
        ({"ffn_hidden_size": None}, {"ffn_hidden_size": 256}),
        ({"ffn_hidden_size": None, "swiglu": True}, {"ffn_hidden_size": 128}),
        # Norms.
        ({}, {"normalization": "LayerNorm", "layernorm_epsilon": 1e-5, "layernorm_zero_centered_gamma": False}),
        (
            {"normalization": "RMSNorm", "layernorm_epsilon": 1e-6},
            {"normalization": "RMSNorm", "layernorm_epsilon": 1e-6},
        ),
        ({"norm_epsilon": 1e-6}, {"layernorm_epsilon": 1e-6}),
        ({"layernorm_zero_centered_gamma": True}, {"layernorm_zero_centered_gamma": True}),
        ({"apply_layernorm_1p": True}, {"layernorm_zero_centered_gamma": True}),
        ({"qk_layernorm": True}, {"qk_layernorm": "head"}),
        ({"qk_l2_norm": True}, {"qk_layernorm": "l2"}),
        # Attention.
        ({"softmax_scale": 0.3}, {"softmax_scale": 0.3}),
        ({"softmax_type": "learnable"}, {"softmax_type": "learnable"}),
        # Its scores are multiplied back before the softmax.
        ({"apply_query_key_layer_scaling": True}, {"softmax_scale": None, "scale_attn_by_inverse_layer_idx": False}),
        # Output and dtype.
        ({}, {"untie_embeddings_and_output_weights": False, "vocab_size": 384}),
        ({"untie_embeddings_and_output_weights": True}, {"untie_embeddings_and_output_weights": True}),
        ({"padded_vocab_size": None, "vocab_size": 320}, {"vocab_size": 384}),
        ({"padded_vocab_size": None, "vocab_size": 320, "tensor_model_parallel_size": 2}, {"vocab_size": 512}),
        ({"padded_vocab_size": None, "vocab_size": 320, "make_vocab_size_divisible_by": 16}, {"vocab_size": 320}),
        ({"padded_vocab_size": None, "vocab_size": 321, "should_pad_vocab": False}, {"vocab_size": 321}),
        ({"params_dtype": "torch.bfloat16"}, {"params_dtype": torch.bfloat16}),
        ({"params_dtype": "bfloat16"}, {"params_dtype": torch.bfloat16}),
        ({"bf16": True}, {"params_dtype": torch.bfloat16}),
        ({"fp16": True}, {"params_dtype": torch.float16}),
        ({}, {"params_dtype": torch.float32}),
        ({"max_position_embeddings": None, "seq_length": 512}, {"max_position_embeddings": 512}),
    ],
)
def test_an_argument_means_what_it_does_in_megatron(args: dict[str, Any], expected: dict[str, Any]) -> None:
    config = read(**args)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("args", "windows"),
    [
        ({}, ()),
        ({"window_size": (-1, 0)}, ()),
        # w before a token and the token itself.
        ({"window_size": (127, 0)}, (128,) * 4),
        ({"window_size": [127, 0], "window_attn_skip_freq": 2}, (128, None, 128, None)),
        ({"window_size": [127, -1], "window_attn_skip_freq": 3}, (128, 128, None, 128)),
        ({"window_size": (7, 0), "window_attn_skip_freq": [1, 0, 0, 1]}, (8, None, None, 8)),
    ],
)
def test_windows_hold_one_more_token_than_megatron_says(args: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read(**args).layer_windows == windows


def test_positions_are_learned_unless_said_otherwise() -> None:
    config = read()
    assert (config.position_embedding_type, config.rotates) == ("learned", False)
    assert read(position_embedding_type="none").position_embedding_type == "none"
    assert read(use_rotary_position_embeddings=True).position_embedding_type == "rope"


def test_rotation_is_read_with_its_share_and_base() -> None:
    config = read(position_embedding_type="rope", rotary_percent=0.5, rotary_base=500000, rotary_interleaved=True)
    assert (config.rotary_percent, config.rotary_base, config.rotary_interleaved) == (0.5, 500000.0, True)
    assert config.rope_scaling is None


def test_rope_scaling_is_llama_31s_formula() -> None:
    scaling = read(position_embedding_type="rope", use_rope_scaling=True, rope_scaling_factor=32.0).rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor, scaling.original_max_position_embeddings) == ("llama3", 32.0, 8192)
    assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1.0, 4.0)


def test_interpolation_stretches_within_the_length_that_was_saved() -> None:
    config = read(position_embedding_type="rope", rotary_seq_len_interpolation_factor=4)
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 4.0)
    assert config.context_length == 2048


def test_an_interpolation_by_one_is_none() -> None:
    assert read(position_embedding_type="rope", rotary_seq_len_interpolation_factor=1).rope_scaling is None


@pytest.mark.parametrize("prefix", ["", "yarn_"])
def test_yarn_takes_its_numbers_with_or_without_their_prefix(prefix: str) -> None:
    numbers = {"rotary_scaling_factor": 4.0, "mscale": 0.5, "mscale_all_dim": 0.25, "beta_fast": 16.0}
    args = {f"{prefix}{name}": value for name, value in numbers.items()}
    config = read(position_embedding_type="yarn", rotary_percent=0.5, yarn_original_max_position_embeddings=512, **args)
    scaling = config.rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor, scaling.beta_fast, scaling.beta_slow) == ("yarn", 4.0, 16.0, 1.0)
    assert scaling.original_max_position_embeddings == 512
    growth = math.log(4.0) / 10
    assert scaling.attention_factor == pytest.approx((0.5 * growth + 1) / (0.25 * growth + 1))
    assert config.rotary_percent == 1.0  # Megatron's yarn rotates whole heads


@pytest.mark.parametrize(
    ("frequency", "layers"), [(None, ()), (2, (False, True, False, True)), ([0, 0, 0, 1], (False, False, False, True))]
)
def test_some_layers_are_not_rotated(frequency: Any, layers: tuple[bool, ...]) -> None:
    config = read(position_embedding_type="rope", no_rope_freq=frequency)
    assert config.no_rope_layers == layers
    assert config.uses_rope(0)
    assert config.uses_rope(3) == (not layers)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, {"num_moe_experts": 8, "moe_router_topk": 4, "moe_ffn_hidden_size": 32, "moe_layer_freq": (True,) * 4}),
        ({"moe_ffn_hidden_size": None}, {"moe_ffn_hidden_size": 96}),
        ({"moe_layer_freq": 2}, {"moe_layer_freq": (True, False, True, False)}),
        ({"moe_layer_freq": [0, 1, 1, 1]}, {"moe_layer_freq": (False, True, True, True)}),
        # A softmax over the chosen experts sums to one, one over all experts does not.
        ({}, {"moe_router_score_function": "softmax", "norm_topk_prob": True}),
        ({"moe_router_pre_softmax": True}, {"norm_topk_prob": False}),
        ({"moe_router_score_function": "sigmoid"}, {"moe_router_score_function": "sigmoid", "norm_topk_prob": True}),
        ({"moe_router_score_function": "sigmoid", "moe_router_topk": 1}, {"norm_topk_prob": False}),
        ({"moe_router_topk_scaling_factor": 2.5}, {"moe_router_topk_scaling_factor": 2.5}),
        ({"moe_router_topk_scaling_factor": 0}, {"moe_router_topk_scaling_factor": None}),
        (
            {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
            {"moe_router_enable_expert_bias": True},
        ),
        ({"moe_router_dtype": "fp32"}, {"moe_router_float32": True}),
        ({"moe_router_dtype": None}, {"moe_router_float32": False}),
        (
            {"moe_router_num_groups": 4, "moe_router_group_topk": 2},
            {
                "moe_router_num_groups": 4,
                "moe_router_group_topk": 2,
                "moe_router_scores_per_group": 2,
                "moe_router_groups_by_logits": True,
            },
        ),
        (
            {"moe_router_num_groups": 2, "moe_router_group_topk": 1, "moe_router_pre_softmax": True},
            {"moe_router_scores_per_group": 4, "moe_router_groups_by_logits": False},
        ),
        (
            {"moe_shared_expert_intermediate_size": 40, "moe_shared_expert_gate": True},
            {"moe_shared_expert_intermediate_size": 40, "moe_shared_expert_gate": True},
        ),
        (
            {"moe_router_load_balancing_type": "sinkhorn", "moe_router_topk": 1},
            {"moe_router_score_function": "sigmoid", "norm_topk_prob": False},
        ),
        (
            {"moe_router_load_balancing_type": "sinkhorn"},
            {"moe_router_score_function": "softmax", "norm_topk_prob": False},
        ),
        # Experts and their router have biases where all linear layers do.
        ({}, {"add_router_bias": True, "add_mlp_bias": True}),
        ({"add_bias_linear": False}, {"add_router_bias": False, "add_mlp_bias": False}),
    ],
)
def test_experts_are_chosen_as_megatron_chooses_them(args: dict[str, Any], expected: dict[str, Any]) -> None:
    config = read(**EXPERTS | args)
    assert {name: getattr(config, name) for name in expected} == expected


def test_latent_attention_is_cached_with_heads_of_one_size() -> None:
    config = read(**LATENT, q_lora_rank=20, rope_type="rope", qk_layernorm=True)
    latent = config.latent_attention
    assert latent is not None
    assert (latent.q_lora_rank, latent.head_size, latent.has_norms) == (20, 16, True)
    assert (config.kv_channels, config.num_query_groups, config.rotary_channels) == (16, 4, 4)
    assert (config.qk_layernorm, config.rope_scaling) == ("none", None)


def test_latent_attention_takes_yarn_by_default_and_its_magnitude_squared() -> None:
    config = read(**LATENT, q_lora_rank=None, rotary_scaling_factor=40.0, mscale=1.0, mscale_all_dim=1.0)
    magnitude = 0.1 * math.log(40) + 1
    assert config.latent_attention is not None
    assert config.latent_attention.q_lora_rank is None
    assert config.softmax_scale == pytest.approx(magnitude**2 / 4)
    assert config.rope_scaling is not None
    assert config.rope_scaling.attention_factor == 1.0


def test_latent_attention_rotates_whatever_the_positions_are() -> None:
    config = read(**LATENT | {"position_embedding_type": "none"})
    assert (config.position_embedding_type, config.rotates) == ("none", True)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"position_embedding_type": "mrope"}, "position_embedding_type = 'mrope'"),
        ({"position_embedding_type": "relative"}, "position_embedding_type = 'relative'"),
        ({"normalization": "L2Norm"}, "normalization = 'L2Norm'"),
        ({"hybrid_override_pattern": "M-*"}, "hybrid_override_pattern = 'M-*': Mamba layers"),
        ({"heterogeneous_layers_config_path": "/x"}, "heterogeneous_layers_config_path = '/x'"),
        ({"experimental_attention_variant": "dsa"}, "experimental_attention_variant = 'dsa'"),
        ({"attention_output_gate": True}, "attention_output_gate = True"),
        ({"moe_latent_size": 16}, "moe_latent_size = 16"),
        ({"use_mup": True}, "use_mup = True"),
        ({"window_size": (5, 5)}, "window_size = [5, 5]"),
        ({"window_size": (5, 0), "window_attn_skip_freq": [1]}, "window_attn_skip_freq = [1]"),
        ({"no_rope_freq": [1], "position_embedding_type": "rope"}, "no_rope_freq = [1]"),
        ({"swiglu": True, "squared_relu": True}, "swiglu = True"),
        ({"activation_func": "tanh"}, "activation_func = 'tanh'"),
        ({"qk_layernorm": True, "qk_l2_norm": True}, "qk_l2_norm = True"),
        ({"num_layers": "4"}, "num_layers = '4': a whole number"),
        ({"softmax_type": "odd"}, "softmax_type = 'odd'"),
        ({"swiglu": 1}, "swiglu = 1: true or false"),
        (
            {"position_embedding_type": "yarn", "rotary_interleaved": True},
            "rotary_interleaved = True: false, with position_embedding_type",
        ),
        (
            {"position_embedding_type": "rope", "use_rope_scaling": True, "rotary_seq_len_interpolation_factor": 2},
            "rotary_seq_len_interpolation_factor = 2",
        ),
        (EXPERTS | {"moe_router_score_function": "sqrtsoftplus"}, "moe_router_score_function = 'sqrtsoftplus'"),
        (EXPERTS | {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias = True"),
        (EXPERTS | {"moe_router_load_balancing_type": "quantile_balancing"}, "quantile_balancing"),
        (EXPERTS | {"moe_layer_freq": [1, 0]}, "moe_layer_freq = [1, 0]"),
        (EXPERTS | {"moe_router_num_groups": 3, "moe_router_group_topk": 1}, "moe_router_num_groups = 3"),
        (EXPERTS | {"moe_router_num_groups": 8, "moe_router_group_topk": 8}, "moe_router_group_topk = 8"),
        (LATENT | {"rotary_interleaved": True}, "rotary_interleaved = True"),
        (LATENT | {"position_embedding_type": "yarn"}, "position_embedding_type = 'yarn'"),
        (LATENT | {"rope_type": "mrope"}, "rope_type = 'mrope'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name_and_value(args: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**args)
    assert told in str(caught.value)


def test_without_arguments_the_structure_is_unknown() -> None:
    with pytest.raises(CheckpointError, match="no saved arguments"):
        read_transformer_config({"architectures": ["MegatronGPT"]})


def test_a_layer_specification_of_ones_own_is_told(caplog: pytest.LogCaptureFixture) -> None:
    read(spec=["somewhere.layers", "build"])
    assert "somewhere.layers" in caplog.text


@pytest.mark.parametrize("args", [{}, {"window_size": (3, 0)}, EXPERTS, {"no_rope_freq": 2}])
def test_more_layers_than_memory_holds_are_refused_at_once(args: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="num_layers = 1000000000000: a number up to 100000 is needed"):
        read(num_layers=10**12, **args)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.nan, math.inf, 5e-324], ids=range(5))
@pytest.mark.parametrize(
    "name",
    [
        "hidden_size", "kv_channels", "qk_head_dim", "rotary_base", "rotary_percent", "mscale", "layernorm_epsilon",
        "rotary_scaling_factor", "rotary_seq_len_interpolation_factor", "max_position_embeddings",
    ],
)  # fmt: skip
def test_a_number_without_measure_is_read_or_refused_but_never_breaks(name: str, value: float) -> None:
    for kind in ({"position_embedding_type": "rope"}, LATENT):
        with contextlib.suppress(CheckpointError):
            read(**{**kind, name: value})
