"""The arguments that Megatron saves in a checkpoint, to a TransformerConfig.

Reads what changes the arithmetic and refuses what is not implemented; knows no files. Defaults are those of Megatron's
command line, since older versions save fewer arguments. See docs/megatron-model-options.md.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.megatron_experts import read_experts
from kilotron.models.megatron_rotation import read_positions
from kilotron.models.transformer_config import LatentAttention, TransformerConfig

logger = logging.getLogger(__name__)

SOURCE = "the checkpoint's saved arguments"
# What arguments look like that ask for nothing.
ABSENT: tuple[Any, ...] = (None, False, 0, "", [], 0.0)
REFUSED = {
    "hybrid_layer_pattern": "Mamba layers",
    "hybrid_override_pattern": "Mamba layers",
    "is_hybrid_model": "Mamba layers",
    "heterogeneous_layers_config_path": "layers of different structure",
    "experimental_attention_variant": "such attention layers",
    "attention_output_gate": "gates on attention",
    "use_mup": "the multipliers of maximal update parametrization",
    "apply_residual_connection_post_layernorm": "residuals after norms",
    "moe_latent_size": "experts in a latent space",
    "moe_router_topk_limited_devices": "routers that know devices",
    "moe_apply_probs_on_input": "weights on the experts' input",
    "moe_mlp_glu_interleave_size": "interleaved gates",
    "moe_shared_expert_glu_interleave_size": "interleaved gates",
    "moe_router_force_load_balancing": "routers that are not the trained ones",
    "moe_router_force_biased": "routers that are not the trained ones",
}
FLAGGED_ACTIVATIONS = {"swiglu": ("silu", True), "squared_relu": ("relu2", False), "quick_geglu": ("quick_gelu", True)}
# Megatron-Bridge saves the function's name.
NAMED_ACTIVATIONS = {
    "gelu": "gelu",
    "fast_gelu": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
    "squared_relu": "relu2",
    "quick_gelu": "quick_gelu",
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_megatron_gpt(fields: ConfigFields) -> TransformerConfig:
    """A GPT model of Megatron: dense or with experts, plain or latent attention."""
    args = saved_arguments(fields.values)
    num_heads = args.count("num_attention_heads")
    add_bias = args.flag("add_bias_linear", True)
    return TransformerConfig(
        num_layers=args.count("num_layers"),
        hidden_size=args.count("hidden_size"),
        num_attention_heads=num_heads,
        vocab_size=_padded_vocab_size(args),
        add_qkv_bias=add_bias or args.flag("add_qkv_bias", False),
        add_proj_bias=add_bias,
        add_mlp_bias=add_bias,
        untie_embeddings_and_output_weights=args.flag("untie_embeddings_and_output_weights", False),
        params_dtype=_params_dtype(args),
        layer_windows=_layer_windows(args),
        softmax_type=args.text("softmax_type", "vanilla"),
        **_feed_forward(args, has_bias=add_bias),
        **_norms(args),
        **_heads(args, num_heads),
        **read_positions(args),
        **read_experts(args),
    )


def saved_arguments(values: Mapping[str, Any]) -> ConfigFields:
    """The arguments with lists for tuples, once nothing in them is known not to be implemented.

    Raises:
        CheckpointError: there are none, or one stands for a part that is not implemented.
    """
    args = ConfigFields({name: _plain(value) for name, value in values.items()}, SOURCE)
    if "num_layers" not in args:
        raise CheckpointError(
            "this Megatron checkpoint has no saved arguments (no 'num_layers' in 'args'), so the model's structure is "
            "unknown: save it again with Megatron's own trainer, or convert it with Megatron-Bridge"
        )
    for name, meaning in REFUSED.items():
        if args.values.get(name) not in ABSENT:
            raise CheckpointError(f"{SOURCE}: {name} = {args.values[name]!r}: {meaning} are not implemented")
    spec = args.values.get("spec")
    if spec not in (None, "local", ["local"]):
        logger.warning("the model was trained with a layer specification of its own, %s; it is not read", spec)
    return args


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _padded_vocab_size(args: ConfigFields) -> int:
    """Rows of the embedding table; where they were not saved, rounded up as Megatron does."""
    if "padded_vocab_size" in args:
        return args.count("padded_vocab_size")
    if not args.flag("should_pad_vocab", True):  # Megatron-Bridge's
        return args.count("vocab_size")
    multiple = args.count("make_vocab_size_divisible_by", 128) * args.count("tensor_model_parallel_size", 1)
    return -(-args.count("vocab_size") // multiple) * multiple


def _params_dtype(args: ConfigFields) -> torch.dtype:
    """That of the weights."""
    name = str(args.values.get("params_dtype") or "").removeprefix("torch.")
    if name in DTYPES:
        return DTYPES[name]
    if args.flag("bf16", False):
        return torch.bfloat16
    return torch.float16 if args.flag("fp16", False) else torch.float32


def _feed_forward(args: ConfigFields, *, has_bias: bool) -> dict[str, Any]:
    activation, is_gated = _activation(args)
    # The fused operation is the tanh approximation, the plain one is exact.
    is_fused = args.flag("bias_gelu_fusion", True) and (has_bias or is_gated)
    if activation == "gelu" and (is_fused or args.flag("openai_gelu", False)):
        activation = "gelu_tanh"
    return {
        "ffn_hidden_size": _ffn_hidden_size(args),
        "gated_linear_unit": is_gated,
        "activation": activation,
        "activation_clamp": args.optional_number("activation_func_clamp_value") if is_gated else None,
        "glu_linear_offset": args.number("glu_linear_offset", 0.0) if is_gated else 0.0,
    }


def _activation(args: ConfigFields) -> tuple[str, bool]:
    """The kind, and whether it gates."""
    chosen = [name for name in FLAGGED_ACTIVATIONS if args.flag(name, False)]
    if len(chosen) > 1:
        raise args.wrong(chosen[0], f"false, with {chosen[1]}:")
    is_gated = args.flag("gated_linear_unit", False)
    if chosen:
        kind, gates = FLAGGED_ACTIVATIONS[chosen[0]]
        return kind, gates or is_gated
    function = args.text("activation_func", "gelu")
    if function not in NAMED_ACTIVATIONS:
        raise args.wrong("activation_func", f"one of {', '.join(NAMED_ACTIVATIONS)}")
    return NAMED_ACTIVATIONS[function], is_gated


def _ffn_hidden_size(args: ConfigFields) -> int:
    """Where it was not given, four times the hidden size, or as many weights with a gate."""
    hidden_size = args.count("hidden_size")
    default = int(4 * hidden_size * 2 / 3 / 64) * 64 if args.flag("swiglu", False) else 4 * hidden_size
    return args.count("ffn_hidden_size", max(default, 1))


def _norms(args: ConfigFields) -> dict[str, Any]:
    normalization = args.text("normalization", "LayerNorm")
    if normalization not in ("LayerNorm", "RMSNorm"):
        raise args.wrong("normalization", "'LayerNorm' or 'RMSNorm'")
    is_centered = args.flag("layernorm_zero_centered_gamma", args.flag("apply_layernorm_1p", False))
    return {
        "normalization": normalization,
        "layernorm_epsilon": args.number("layernorm_epsilon", args.number("norm_epsilon", 1e-5)),
        "layernorm_zero_centered_gamma": is_centered,
    }


def _heads(args: ConfigFields, num_heads: int) -> dict[str, Any]:
    if args.flag("multi_latent_attention", False):
        return _latent_heads(args, num_heads)
    if args.flag("qk_layernorm", False) and args.flag("qk_l2_norm", False):
        raise args.wrong("qk_l2_norm", "only one of qk_layernorm and qk_l2_norm")
    kind = "head" if args.flag("qk_layernorm", False) else "l2" if args.flag("qk_l2_norm", False) else "none"
    # num_query_groups is 1 in the arguments of plain multi-head models.
    is_grouped = args.flag("group_query_attention", False)
    return {
        "num_query_groups": args.count("num_query_groups") if is_grouped else num_heads,
        "kv_channels": args.count("kv_channels", args.count("hidden_size") // num_heads),
        "qk_layernorm": kind,
        "softmax_scale": args.optional_number("softmax_scale"),
    }


def _latent_heads(args: ConfigFields, num_heads: int) -> dict[str, Any]:
    latent = LatentAttention(
        q_lora_rank=args.count("q_lora_rank") if "q_lora_rank" in args else None,
        kv_lora_rank=args.count("kv_lora_rank", 512),
        qk_head_dim=args.count("qk_head_dim", 128),
        qk_pos_emb_head_dim=args.count("qk_pos_emb_head_dim", 64),
        v_head_dim=args.count("v_head_dim", 128),
        has_norms=args.flag("qk_layernorm", False),
    )
    return {"num_query_groups": num_heads, "kv_channels": latent.cached_head_size, "latent_attention": latent}


def _layer_windows(args: ConfigFields) -> tuple[int | None, ...]:
    """Megatron's window (w, 0) lets a token see itself and w before it; every n-th layer may see everything."""
    bounds = args.integers("window_size")
    if not bounds:
        return ()
    if len(bounds) != 2 or bounds[1] not in (0, -1) or bounds[0] < -1:
        raise args.wrong("window_size", "(tokens before, 0)")
    if bounds[0] == -1:
        return ()
    num_layers, window = args.count("num_layers"), bounds[0] + 1
    skip = args.integers("window_attn_skip_freq")
    if isinstance(args.values.get("window_attn_skip_freq"), list):
        if len(skip) != num_layers:
            raise args.wrong("window_attn_skip_freq", f"a number for each of {num_layers} layers")
        return tuple(window if has_window else None for has_window in skip)
    every = args.count("window_attn_skip_freq") if skip else num_layers + 1
    return tuple(window if (layer + 1) % every else None for layer in range(num_layers))
