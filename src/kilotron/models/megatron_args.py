"""A model's structure as the arguments that Megatron saves in a checkpoint, and what Megatron has no arguments for.

Knows the names of Megatron's options; which checkpoint they go to is somebody else's business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.megatron_config import read_megatron_gpt
from kilotron.models.megatron_encoder_args import encoder_args, encoder_gaps, without_decoder_start
from kilotron.models.megatron_t5_config import read_megatron_t5
from kilotron.models.structure import differences, plain_scaling
from kilotron.models.transformer_config import RopeScaling, TransformerConfig

# As Megatron's fixed formula for Llama 3.1 has them.
LLAMA3_FIXED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# What megatron-core checks or reads when it loads; no part of the structure.
BOOKKEEPING: Mapping[str, Any] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "expert_model_parallel_size": 1,
    "context_parallel_size": 1,
    "data_parallel_size": 1,
    "world_size": 1,
    "use_distributed_optimizer": False,
    "no_save_optim": True,
    "no_save_rng": True,
    "ckpt_format": "torch_dist",
    "use_dist_ckpt": True,
    "consumed_train_samples": 0,
    "skipped_train_samples": 0,
    "consumed_valid_samples": 0,
    "iteration": 0,
}


def megatron_args(config: TransformerConfig) -> dict[str, Any]:
    """The structure under Megatron's names, as far as it has names for it; see `find_megatron_gaps`."""
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "group_query_attention": config.num_query_groups != config.num_attention_heads,
        # As Megatron has it for plain multi-head attention.
        "num_query_groups": config.num_query_groups if config.num_query_groups != config.num_attention_heads else 1,
        "kv_channels": config.kv_channels,
        "max_position_embeddings": config.max_position_embeddings,
        "seq_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "untie_embeddings_and_output_weights": config.untie_embeddings_and_output_weights,
        "normalization": config.normalization,
        "layernorm_epsilon": config.layernorm_epsilon,
        "layernorm_zero_centered_gamma": config.layernorm_zero_centered_gamma,
        "qk_layernorm": config.qk_layernorm in ("head", "projection"),
        "qk_l2_norm": config.qk_layernorm == "l2",
        "softmax_type": config.softmax_type,
        "add_bias_linear": config.add_mlp_bias,
        "add_qkv_bias": config.add_qkv_bias,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        **_activation_args(config),
        **_latent_args(config),
        **_position_args(config),
        **_window_args(config),
        **_expert_args(config),
        **_dtype_args(config.params_dtype),
        **encoder_args(config),
    }


def find_megatron_gaps(config: TransformerConfig) -> list[str]:
    """What this model needs that megatron-core has no option for; empty when megatron-core itself can run it.

    Told in words where there are some, else by the fields that its arguments do not give back.
    """
    named = [
        *_layer_gaps(config),
        *_bias_gaps(config),
        *([] if config.rope_scaling is None else _rope_gaps(config.rope_scaling)),
        *_score_gaps(config),
        *encoder_gaps(config),
    ]
    if named:
        return named
    config = without_decoder_start(config)
    reader = read_megatron_gpt if config.encoder_decoder is None else read_megatron_t5
    try:
        read = reader(ConfigFields(megatron_args(config)))
    except CheckpointError as error:
        return [str(error)]
    return differences(read, config)


def _activation_args(config: TransformerConfig) -> dict[str, Any]:
    return {
        "swiglu": config.gated_linear_unit and config.activation == "silu",
        "squared_relu": not config.gated_linear_unit and config.activation == "relu2",
        "quick_geglu": config.gated_linear_unit and config.activation == "quick_gelu",
        "openai_gelu": False,
        "activation_func_clamp_value": config.activation_clamp,
        "glu_linear_offset": config.glu_linear_offset,
        # With the fusion, Megatron computes the tanh form; it has none without biases.
        "bias_gelu_fusion": config.activation == "gelu_tanh" and config.add_mlp_bias,
    }


def _latent_args(config: TransformerConfig) -> dict[str, Any]:
    latent = config.latent_attention
    if latent is None:
        return {"multi_latent_attention": False}
    return {
        "multi_latent_attention": True,
        "q_lora_rank": latent.q_lora_rank,
        "kv_lora_rank": latent.kv_lora_rank,
        "qk_head_dim": latent.qk_head_dim,
        "qk_pos_emb_head_dim": latent.qk_pos_emb_head_dim,
        "v_head_dim": latent.v_head_dim,
        "qk_layernorm": latent.has_norms,
        "rope_type": "rope" if config.rope_scaling is None else "yarn",
        # Megatron's attention scale follows these even without yarn.
        "rotary_scaling_factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    }


def _position_args(config: TransformerConfig) -> dict[str, Any]:
    kind = {"learned": "learned_absolute", "learned_in_stack": "learned_absolute"}.get(
        config.position_embedding_type, config.position_embedding_type
    )
    args: dict[str, Any] = {
        "position_embedding_type": kind,
        "add_position_embedding": True,
        "use_rotary_position_embeddings": False,
        "rotary_base": int(config.rotary_base) if config.rotary_base.is_integer() else config.rotary_base,
        "rotary_percent": config.rotary_percent,
        "rotary_interleaved": config.rotary_interleaved,
        "no_rope_freq": [int(one) for one in config.no_rope_layers] or None,
        "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False,
        "rope_scaling_factor": 8.0,
    }
    scaling = config.rope_scaling
    if scaling is None:
        return args
    if scaling.kind == "linear":
        args["rotary_seq_len_interpolation_factor"] = (
            int(scaling.factor) if scaling.factor.is_integer() else scaling.factor
        )
    elif scaling.kind == "llama3":
        args |= {"use_rope_scaling": True, "rope_scaling_factor": scaling.factor}
    elif scaling.kind == "yarn":
        args |= {
            "position_embedding_type": "yarn" if config.latent_attention is None else "rope",
            "rotary_scaling_factor": scaling.factor,
            "yarn_rotary_scaling_factor": scaling.factor,
            # With latent attention, Megatron's names have no prefix.
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
            "yarn_original_max_position_embeddings": scaling.original_max_position_embeddings,
            "beta_fast": scaling.beta_fast,
            "yarn_beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "yarn_beta_slow": scaling.beta_slow,
            "mscale": 1.0 if scaling.mscale is None else scaling.mscale,
            "mscale_all_dim": 0.0 if scaling.mscale_all_dim is None else scaling.mscale_all_dim,
            "yarn_correction_range_round_to_int": scaling.truncate,
        }
    return args


def _window_args(config: TransformerConfig) -> dict[str, Any]:
    windows = {window for window in config.layer_windows if window is not None}
    if not windows:
        return {"window_size": None, "window_attn_skip_freq": None}
    # (w, 0) sees w tokens back and the token itself.
    flags = [int(window is not None) for window in config.layer_windows]
    return {"window_size": (min(windows) - 1, 0), "window_attn_skip_freq": None if all(flags) else flags}


def _expert_args(config: TransformerConfig) -> dict[str, Any]:
    if config.num_moe_experts is None:
        return {"num_experts": None}
    layers = [int(config.is_moe_layer(layer)) for layer in range(config.num_layers)]
    return {
        "num_experts": config.num_moe_experts,
        "moe_router_topk": config.moe_router_topk,
        "moe_ffn_hidden_size": config.moe_ffn_hidden_size,
        "moe_layer_freq": 1 if all(layers) else layers,
        "moe_router_score_function": config.moe_router_score_function,
        # Softmax over the chosen ones only gives weights that sum to one; sigmoids are scaled to that anyhow.
        "moe_router_pre_softmax": config.moe_router_score_function == "softmax" and not config.norm_topk_prob,
        "moe_router_dtype": "fp32" if config.moe_router_float32 else None,
        "moe_router_topk_scaling_factor": config.moe_router_topk_scaling_factor,
        "moe_router_enable_expert_bias": config.moe_router_enable_expert_bias,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_router_num_groups": config.moe_router_num_groups,
        "moe_router_group_topk": config.moe_router_group_topk,
        "moe_shared_expert_intermediate_size": config.moe_shared_expert_intermediate_size,
        "moe_shared_expert_gate": config.moe_shared_expert_gate,
        "moe_grouped_gemm": False,
    }


def _dtype_args(dtype: torch.dtype) -> dict[str, Any]:
    return {"params_dtype": dtype, "bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}


def _layer_gaps(config: TransformerConfig) -> Iterator[str]:
    if config.norm_placement != "pre":
        yield f"norms in {config.norm_placement} position"
    if config.use_parallel_residual:
        yield "attention and MLP side by side (parallel residual)"
    if config.qk_layernorm == "projection":
        yield "norms over the whole of query and key"
    latent = config.latent_attention
    if latent is not None and latent.norm_epsilon not in (None, config.layernorm_epsilon):
        yield "norms of latent vectors with an epsilon of their own"
    if latent is not None and not latent.rotary_interleaved:
        yield "latent attention that rotates halves, not pairs"
    if config.embedding_multiplier != 1.0:
        yield "scaled embeddings"
    known = ("silu", "quick_gelu") if config.gated_linear_unit else ("gelu", "gelu_tanh", "relu2")
    if config.activation not in known or (config.activation == "gelu_tanh" and not config.add_mlp_bias):
        yield f"the activation {config.activation}{' in a gated MLP' if config.gated_linear_unit else ''}"


def _bias_gaps(config: TransformerConfig) -> Iterator[str]:
    biases = (config.add_qkv_bias, config.add_proj_bias, config.add_mlp_bias)
    if biases not in ((True, True, True), (True, False, False), (False, False, False)):
        names = ("query, key and value", "attention output", "MLP")
        yield f"biases on {' and '.join(name for name, has in zip(names, biases, strict=True) if has)} only"


def _rope_gaps(scaling: RopeScaling) -> Iterator[str]:
    if scaling.kind in ("dynamic", "longrope"):
        yield f"rotary scaling of the kind {scaling.kind}"
    if scaling.kind == "llama3" and any(getattr(scaling, name) != value for name, value in LLAMA3_FIXED.items()):
        yield "llama3 rotary scaling with other than Llama 3.1's numbers"
    if plain_scaling(scaling) != plain_scaling(replace(scaling, attention_factor=None)):
        yield "yarn rotary scaling with an attention factor of its own"


def _score_gaps(config: TransformerConfig) -> Iterator[str]:
    if config.softmax_scale is not None and config.latent_attention is None:
        yield "an attention scale of its own"
    if config.scale_attn_by_inverse_layer_idx:
        yield "attention scores divided by the layer's number"
    if config.attn_logit_softcapping is not None or config.final_logit_softcapping is not None:
        yield "soft-caps"
    if config.local_rotary_base is not None:
        yield "a rotation of their own for layers with a window"
    if len({window for window in config.layer_windows if window is not None}) > 1:
        yield "windows of different sizes"
    if config.num_moe_experts is not None and config.moe_router_topk == 1 and config.norm_topk_prob:
        yield "one expert per token with a weight of one"
