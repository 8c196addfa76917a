"""The architectures kilotron implements: for each, how its config.json is read and what its tensors are called.

A reader turns config.json into a TransformerConfig; defaults are those of the architecture's class in transformers,
because files leave out what equals them. To add a model, see docs/adding-a-model.md.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from kilotron.checkpoints import weight_names
from kilotron.checkpoints.weight_names import WeightNames
from kilotron.models.config_fields import ConfigFields
from kilotron.models.rope_fields import read_rope, read_rope_scaling, rope_section
from kilotron.models.transformer_config import LatentAttention, TransformerConfig, yarn_magnitude

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}


class Architecture(NamedTuple):
    """What there is to know about one `architectures` entry of config.json."""

    read_config: Callable[[ConfigFields], TransformerConfig]
    weight_names: WeightNames


def read_gpt2(fields: ConfigFields) -> TransformerConfig:
    """Learned positions, layer norms, biases everywhere."""
    hidden_size, num_heads = fields.count("n_embd", 768), fields.count("n_head", 12)
    scale = 1.0 if not fields.flag("scale_attn_weights", True) else None
    return TransformerConfig(
        num_layers=fields.integer("n_layer", 12),
        hidden_size=hidden_size,
        ffn_hidden_size=fields.integer("n_inner", 4 * hidden_size),
        num_attention_heads=num_heads,
        num_query_groups=num_heads,
        kv_channels=hidden_size // num_heads,
        max_position_embeddings=fields.integer("n_positions", 1024),
        normalization="LayerNorm",
        layernorm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        add_qkv_bias=True,
        add_proj_bias=True,
        add_mlp_bias=True,
        gated_linear_unit=False,
        activation=read_activation(fields, "activation_function", "gelu_new"),
        position_embedding_type="learned",
        softmax_scale=scale,
        scale_attn_by_inverse_layer_idx=fields.flag("scale_attn_by_inverse_layer_idx", False),
        **read_vocabulary(fields, is_tied=True),
    )


def read_gpt_neox(fields: ConfigFields) -> TransformerConfig:
    """Partial rotation, layer norms, attention and MLP side by side."""
    attention_bias = fields.flag("attention_bias", True)
    return TransformerConfig(
        **_sizes(fields),
        **read_vocabulary(fields, is_tied=False),
        **read_rope(fields, default_percent=0.25),
        normalization="LayerNorm",
        layernorm_epsilon=fields.number("layer_norm_eps", 1e-5),
        use_parallel_residual=fields.flag("use_parallel_residual", True),
        add_qkv_bias=attention_bias,
        add_proj_bias=attention_bias,
        add_mlp_bias=True,
        gated_linear_unit=False,
        activation=read_activation(fields, "hidden_act", "gelu"),
    )


def read_llama(fields: ConfigFields) -> TransformerConfig:
    """RMS norms, rotation, gated MLP: the form that most others vary."""
    return TransformerConfig(**_llama(fields))


def read_mistral(fields: ConfigFields) -> TransformerConfig:
    """Llama with one sliding window for all layers."""
    return TransformerConfig(**_llama(fields) | {"layer_windows": _same_window(fields, default=4096)})


def read_qwen2(fields: ConfigFields) -> TransformerConfig:
    """Llama with biases on query, key and value, and windows in the upper layers where switched on."""
    biases = {"add_qkv_bias": True, "add_proj_bias": False, "add_mlp_bias": False}
    return TransformerConfig(**_llama(fields) | biases | {"layer_windows": _qwen_windows(fields)})


def read_qwen3(fields: ConfigFields) -> TransformerConfig:
    """Llama with query and key norms per head."""
    return TransformerConfig(**_qwen3(fields) | {"layer_windows": _qwen_windows(fields)})


def read_qwen3_moe(fields: ConfigFields) -> TransformerConfig:
    """Qwen3 with experts in all layers, every n-th, or all but some."""
    num_layers, every = fields.integer("num_hidden_layers"), fields.integer("decoder_sparse_step", 1)
    dense_layers = fields.integers("mlp_only_layers")
    windows = _same_window(fields, default=4096) if fields.flag("use_sliding_window", False) else ()
    return TransformerConfig(
        **_qwen3(fields),
        layer_windows=windows,
        num_moe_experts=fields.integer("num_local_experts" if "num_local_experts" in fields else "num_experts", 128),
        moe_router_topk=fields.integer("num_experts_per_tok", 8),
        moe_ffn_hidden_size=fields.integer("moe_intermediate_size", 768),
        norm_topk_prob=fields.flag("norm_topk_prob", False),
        moe_layer_freq=tuple((i + 1) % every == 0 and i not in dense_layers for i in range(num_layers)),
    )


def read_mixtral(fields: ConfigFields) -> TransformerConfig:
    """Mistral with experts in every layer."""
    return TransformerConfig(
        **_llama(fields) | read_rope(fields, default_base=1e6),
        layer_windows=_same_window(fields, default=None),
        num_moe_experts=fields.integer("num_local_experts", 8),
        moe_router_topk=fields.integer("num_experts_per_tok", 2),
        moe_ffn_hidden_size=fields.integer("intermediate_size"),
    )


def read_phi3(fields: ConfigFields) -> TransformerConfig:
    """Llama with fused projections and two sets of rope frequencies (longrope)."""
    return TransformerConfig(**_llama(fields) | {"layer_windows": _same_window(fields, default=None)})


def read_olmo2(fields: ConfigFields) -> TransformerConfig:
    """Llama with norms after the sub-layers, and over the whole of query and key."""
    return TransformerConfig(**_llama(fields), norm_placement="post", qk_layernorm="projection")


def read_gemma2(fields: ConfigFields) -> TransformerConfig:
    """Norms on both sides, soft-caps, a window in every second layer, scaled embeddings."""
    windows = _patterned_windows(fields, full_every=2)
    return TransformerConfig(
        **_gemma(fields),
        **read_rope(fields),
        attn_logit_softcapping=_softcap(fields, "attn_logit_softcapping", 50.0),
        final_logit_softcapping=_softcap(fields, "final_logit_softcapping", 30.0),
        layer_windows=windows,
    )


def read_gemma3(fields: ConfigFields) -> TransformerConfig:
    """Gemma-2 with norms of query and key, its soft-caps off, and a rotation of their own for layers with a window."""
    pattern = "_sliding_window_pattern" if "_sliding_window_pattern" in fields else "sliding_window_pattern"
    return TransformerConfig(
        **_gemma(fields),
        **_gemma3_rope(fields),
        qk_layernorm="head",
        attn_logit_softcapping=_softcap(fields, "attn_logit_softcapping", None),
        final_logit_softcapping=_softcap(fields, "final_logit_softcapping", None),
        layer_windows=_patterned_windows(fields, full_every=fields.integer(pattern, 6)),
    )


def read_nemotron(fields: ConfigFields) -> TransformerConfig:
    """Layer norms around zero, half of each head rotated, no gate before the squared ReLU."""
    own = {
        **read_rope(fields, default_percent=0.5),
        "normalization": "LayerNorm",
        "layernorm_epsilon": fields.number("norm_eps", 1e-5),
        "layernorm_zero_centered_gamma": True,
        "gated_linear_unit": False,
        "activation": read_activation(fields, "hidden_act", "relu2"),
    }
    return TransformerConfig(**_llama(fields) | own)


def read_deepseek_v3(fields: ConfigFields) -> TransformerConfig:
    """Latent attention; after some dense layers, experts in groups, chosen by sigmoid scores, and shared ones."""
    if fields.flag("attention_bias", False):
        raise fields.wrong("attention_bias", "false: biases of latent vectors are not implemented, so that")
    latent = LatentAttention(
        q_lora_rank=fields.count("q_lora_rank") if "q_lora_rank" in fields else None,
        kv_lora_rank=fields.count("kv_lora_rank", 512),
        qk_head_dim=fields.count("qk_nope_head_dim", 128),
        qk_pos_emb_head_dim=fields.count("qk_rope_head_dim", 64),
        v_head_dim=fields.count("v_head_dim", 128),
        rotary_interleaved=fields.flag("rope_interleave", True),
        norm_epsilon=1e-6,  # whatever rms_norm_eps is
    )
    own = {
        "num_query_groups": fields.count("num_attention_heads"),
        "kv_channels": latent.cached_head_size,
        "latent_attention": latent,
        "softmax_scale": _yarn_magnitude(fields) ** 2 * latent.head_size**-0.5,
    }
    return TransformerConfig(**_llama(fields) | own | _deepseek_experts(fields))


ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV3ForCausalLM": Architecture(read_deepseek_v3, weight_names.DEEPSEEK_V3),
    "GPT2LMHeadModel": Architecture(read_gpt2, weight_names.GPT2),
    "GPTNeoXForCausalLM": Architecture(read_gpt_neox, weight_names.GPT_NEOX),
    "Gemma2ForCausalLM": Architecture(read_gemma2, weight_names.GEMMA),
    "Gemma3ForCausalLM": Architecture(read_gemma3, weight_names.GEMMA),
    "LlamaForCausalLM": Architecture(read_llama, weight_names.LLAMA),
    "MistralForCausalLM": Architecture(read_mistral, weight_names.LLAMA),
    "MixtralForCausalLM": Architecture(read_mixtral, weight_names.MIXTRAL),
    "NemotronForCausalLM": Architecture(read_nemotron, weight_names.NEMOTRON),
    "Olmo2ForCausalLM": Architecture(read_olmo2, weight_names.OLMO2),
    "Phi3ForCausalLM": Architecture(read_phi3, weight_names.PHI3),
    "Qwen2ForCausalLM": Architecture(read_qwen2, weight_names.LLAMA),
    "Qwen3ForCausalLM": Architecture(read_qwen3, weight_names.LLAMA),
    "Qwen3MoeForCausalLM": Architecture(read_qwen3_moe, weight_names.QWEN3_MOE),
}


def _llama(fields: ConfigFields) -> dict[str, Any]:
    attention_bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    return {
        **_sizes(fields),
        **read_vocabulary(fields, is_tied=False),
        **read_rope(fields),
        "layernorm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "add_qkv_bias": attention_bias,
        "add_proj_bias": attention_bias,
        "add_mlp_bias": mlp_bias,
        "activation": read_activation(fields, "hidden_act", "silu"),
    }


def _qwen3(fields: ConfigFields) -> dict[str, Any]:
    head_size = fields.integer("head_dim", 128)
    return _llama(fields) | {"kv_channels": head_size, "qk_layernorm": "head"}


def _gemma(fields: ConfigFields) -> dict[str, Any]:
    if fields.flag("use_bidirectional_attention", False):
        raise fields.wrong("use_bidirectional_attention", "false: only causal attention is implemented")
    query_scalar = fields.number("query_pre_attn_scalar", 256.0)
    if query_scalar <= 0:
        raise fields.wrong("query_pre_attn_scalar", "a number above 0")
    attention_bias = fields.flag("attention_bias", False)
    return {
        **_sizes(fields),
        **read_vocabulary(fields, is_tied=True),
        "kv_channels": fields.integer("head_dim", 256),
        "layernorm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "layernorm_zero_centered_gamma": True,
        "norm_placement": "sandwich",
        "add_qkv_bias": attention_bias,
        "add_proj_bias": attention_bias,
        "activation": read_activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        "softmax_scale": query_scalar**-0.5,
        "embedding_multiplier": math.sqrt(fields.integer("hidden_size")),
    }


def _deepseek_experts(fields: ConfigFields) -> dict[str, Any]:
    num_dense, size = fields.integer("first_k_dense_replace", 3), fields.count("moe_intermediate_size", 2048)
    num_shared = fields.integer("n_shared_experts", 1)
    return {
        "num_moe_experts": fields.count(
            "num_local_experts" if "num_local_experts" in fields else "n_routed_experts", 256
        ),
        "moe_router_topk": fields.count("num_experts_per_tok", 8),
        "moe_ffn_hidden_size": size,
        "moe_layer_freq": tuple(layer >= num_dense for layer in range(fields.count("num_hidden_layers"))),
        "norm_topk_prob": fields.flag("norm_topk_prob", True),
        "moe_router_score_function": "sigmoid",
        "moe_router_float32": True,
        "moe_router_topk_scaling_factor": fields.number("routed_scaling_factor", 2.5),
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": fields.count("n_group", 8),
        "moe_router_group_topk": fields.count("topk_group", 4),
        "moe_shared_expert_intermediate_size": size * num_shared if num_shared else None,
    }


def _yarn_magnitude(fields: ConfigFields) -> float:
    """What DeepSeek's queries and keys each are multiplied by when their rotation is stretched."""
    rope = rope_section(fields)
    scaling, multiplier = read_rope_scaling(fields, rope), rope.number("mscale_all_dim", 0.0)
    return 1.0 if scaling is None else yarn_magnitude(scaling.factor, multiplier)


def _sizes(fields: ConfigFields) -> dict[str, Any]:
    hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    return {
        "num_layers": fields.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "ffn_hidden_size": fields.integer("intermediate_size"),
        "num_attention_heads": num_heads,
        "num_query_groups": fields.integer("num_key_value_heads", num_heads),
        "kv_channels": fields.integer("head_dim", hidden_size // num_heads),
        "max_position_embeddings": fields.integer("max_position_embeddings"),
    }


def read_vocabulary(
    fields: ConfigFields, *, is_tied: bool, vocab_size: int | None = None, eos_token_id: int | None = None
) -> dict[str, Any]:
    """Vocabulary, special ids and the stored dtype; what is given are the architecture's defaults."""
    name = fields.text("dtype", fields.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise fields.wrong("dtype" if "dtype" in fields else "torch_dtype", f"one of {', '.join(DTYPES)}")
    return {
        "vocab_size": fields.integer("vocab_size", vocab_size),
        "untie_embeddings_and_output_weights": not fields.flag("tie_word_embeddings", is_tied),
        "params_dtype": DTYPES[name],
        "eos_token_ids": fields.integers("eos_token_id") or (() if eos_token_id is None else (eos_token_id,)),
        "bos_token_id": fields.integer("bos_token_id") if "bos_token_id" in fields else None,
    }


def read_activation(fields: ConfigFields, name: str, default: str) -> str:
    """The name of an activation, in our words."""
    kind = fields.text(name, default)
    if kind not in ACTIVATIONS:
        raise fields.wrong(name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]


def _softcap(fields: ConfigFields, name: str, default: float | None) -> float | None:
    """A null switches it off; only a missing field means the default."""
    return fields.optional_number(name) if name in fields.values else default


def _same_window(fields: ConfigFields, default: int | None) -> tuple[int | None, ...]:
    """One window for all layers. A null switches it off; only a missing field means the default."""
    value = fields.values.get("sliding_window", default)
    if value is None:
        return ()
    return (fields.integer("sliding_window", default),) * fields.integer("num_hidden_layers")


def _qwen_windows(fields: ConfigFields) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return ()
    if "layer_types" in fields:
        return _typed_windows(fields)
    window, first = fields.integer("sliding_window", 4096), fields.integer("max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(fields.integer("num_hidden_layers")))


def _patterned_windows(fields: ConfigFields, full_every: int) -> tuple[int | None, ...]:
    """Windows in all layers but every n-th, unless the file lists its layers."""
    if "layer_types" in fields:
        return _typed_windows(fields)
    window = fields.integer("sliding_window", 4096)
    return tuple(window if (i + 1) % full_every else None for i in range(fields.integer("num_hidden_layers")))


def _typed_windows(fields: ConfigFields) -> tuple[int | None, ...]:
    kinds = fields.texts("layer_types")
    if not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise fields.wrong("layer_types", "only 'sliding_attention' and 'full_attention'")
    window = fields.integer("sliding_window") if "sliding_attention" in kinds else None
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _gemma3_rope(fields: ConfigFields) -> dict[str, Any]:
    """Nested `rope_parameters` of transformers 5, or `rope_theta`, `rope_local_base_freq` and `rope_scaling`."""
    everywhere = fields.section("rope_parameters").section("full_attention")
    local = fields.section("rope_parameters").section("sliding_attention")
    if read_rope_scaling(fields, local) is not None:
        raise local.wrong("rope_type", "'default'")
    if fields.values.get("rope_scaling"):
        everywhere = ConfigFields({**everywhere.values, **rope_section(fields).values}, everywhere.source)
    return {
        "rotary_base": everywhere.number("rope_theta", fields.number("rope_theta", 1e6)),
        "rope_scaling": read_rope_scaling(fields, everywhere),
        "local_rotary_base": local.number("rope_theta", fields.number("rope_local_base_freq", 1e4)),
    }
