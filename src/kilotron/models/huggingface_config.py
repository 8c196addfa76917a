"""A model's structure as a config.json of the Hugging Face architecture that can express it.

An architecture can when its own reader makes the same structure of what is written for it; there is no other rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from kilotron.errors import CheckpointError, UnknownArchitectureError
from kilotron.models.architectures import ARCHITECTURES
from kilotron.models.config_fields import ConfigFields
from kilotron.models.structure import differences
from kilotron.models.transformer_config import TransformerConfig

# Where transformers calls an activation otherwise.
ACTIVATIONS = {"gelu_tanh": "gelu_new"}
MOST_SHOWN = 6
ENCODER_DECODER_REFUSED = (
    "an encoder-decoder model becomes the Hugging Face architecture that it was converted from, and this one was "
    "converted from none, or from another than is asked for. Megatron's own T5 is neither Hugging Face's T5 (no scaled "
    "scores, no biases) nor its BART (norms behind layers). Kilotron runs it as it is"
)


class Candidate(NamedTuple):
    """One architecture that a structure may be written as."""

    model_type: str
    write: Callable[[TransformerConfig], dict[str, Any]]


def write_huggingface_config(config: TransformerConfig, architecture: str | None = None) -> dict[str, Any]:
    """The config.json of the plainest architecture that expresses `config`, or of the one that is asked for.

    Raises:
        CheckpointError: that one, or every one, lacks something; says what is lacking in the nearest.
        UnknownArchitectureError: the name is not known here.
    """
    if config.encoder_decoder is not None:
        raise CheckpointError(ENCODER_DECODER_REFUSED)
    if architecture is not None and architecture not in CANDIDATES:
        raise UnknownArchitectureError(
            f"no config.json can be written for architecture {architecture!r}; known: {', '.join(CANDIDATES)}"
        )
    lacking: dict[str, list[str]] = {}
    for name in [architecture] if architecture else CANDIDATES:
        values, missing = _try(name, config)
        if not missing:
            return values
        lacking[name] = missing
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    shown = "; ".join(dict.fromkeys(lacking[nearest][:MOST_SHOWN]))
    raise CheckpointError(
        f"no Hugging Face architecture known here expresses this model; {nearest} comes nearest, and differs in {shown}"
        if architecture is None
        else f"{architecture} cannot express this model: {shown}"
    )


def _try(name: str, config: TransformerConfig) -> tuple[dict[str, Any], list[str]]:
    """The config.json of an architecture, and what its reader makes otherwise of it."""
    candidate = CANDIDATES[name]
    dtype = str(config.params_dtype).removeprefix("torch.")
    end = config.eos_token_ids
    try:
        values = {"architectures": [name], "model_type": candidate.model_type, **candidate.write(config)}
        # Also when there are no ids, since the classes' own may lie outside the vocabulary.
        values |= {"bos_token_id": config.bos_token_id, "eos_token_id": end[0] if len(end) == 1 else [*end] or None}
        values |= {"pad_token_id": None}
        values |= {"dtype": dtype, "torch_dtype": dtype}
        return values, differences(ARCHITECTURES[name].read_config(ConfigFields(values)), config)
    except CheckpointError as error:
        return {}, [str(error)] * len(fields(TransformerConfig))  # further away than any that can be read


def _gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "n_ctx": config.max_position_embeddings,
        "n_inner": config.ffn_hidden_size,
        "activation_function": ACTIVATIONS.get(config.activation, config.activation),
        "layer_norm_epsilon": config.layernorm_epsilon,
        "scale_attn_weights": config.softmax_scale is None,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
    }


def _gpt_neox(config: TransformerConfig) -> dict[str, Any]:
    values = _decoder(config) | {
        "layer_norm_eps": config.layernorm_epsilon,
        "use_parallel_residual": config.use_parallel_residual,
        "attention_bias": config.add_qkv_bias,
        "rotary_pct": config.rotary_percent,
        "rotary_emb_base": config.rotary_base,
    }
    return _partly_rotated(values, config)


def _llama(config: TransformerConfig) -> dict[str, Any]:
    return _decoder(config) | {"attention_bias": config.add_qkv_bias, "mlp_bias": config.add_mlp_bias}


def _mistral(config: TransformerConfig) -> dict[str, Any]:
    return _decoder(config) | {"sliding_window": _first_window(config)}


def _qwen2(config: TransformerConfig) -> dict[str, Any]:
    values = _decoder(config)
    window = _first_window(config)
    if window is None:
        return values | {"use_sliding_window": False}
    kinds = ["full_attention" if one is None else "sliding_attention" for one in config.layer_windows]
    num_full = next((layer for layer, one in enumerate(config.layer_windows) if one is not None), 0)
    # `max_window_layers` is what files before `layer_types` had.
    return values | {
        "use_sliding_window": True,
        "sliding_window": window,
        "layer_types": kinds,
        "max_window_layers": num_full,
    }


def _qwen3(config: TransformerConfig) -> dict[str, Any]:
    return _qwen2(config) | {"attention_bias": config.add_qkv_bias}


def _qwen3_moe(config: TransformerConfig) -> dict[str, Any]:
    window = _first_window(config)
    dense = [layer for layer in range(config.num_layers) if not config.is_moe_layer(layer)]
    return _decoder(config) | {
        "attention_bias": config.add_qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "num_experts": config.num_moe_experts,
        "num_experts_per_tok": config.moe_router_topk,
        "moe_intermediate_size": config.moe_ffn_hidden_size,
        "norm_topk_prob": config.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def _mixtral(config: TransformerConfig) -> dict[str, Any]:
    return _decoder(config) | {
        "intermediate_size": config.moe_ffn_hidden_size,
        "num_local_experts": config.num_moe_experts,
        "num_experts_per_tok": config.moe_router_topk,
        "sliding_window": _first_window(config),
    }


def _phi3(config: TransformerConfig) -> dict[str, Any]:
    return _partly_rotated(_decoder(config) | {"sliding_window": _first_window(config)}, config)


def _nemotron(config: TransformerConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.add_qkv_bias, "mlp_bias": config.add_mlp_bias}
    return _partly_rotated(_decoder(config) | biases | {"norm_eps": config.layernorm_epsilon}, config)


def _deepseek_v3(config: TransformerConfig) -> dict[str, Any]:
    latent = config.latent_attention
    if latent is None or config.moe_ffn_hidden_size is None:
        raise CheckpointError("latent_attention and num_moe_experts are None: DeepSeek-V3 has both")
    values = {name: value for name, value in _decoder(config).items() if name != "head_dim"}
    dense_layers = [layer for layer in range(config.num_layers) if not config.is_moe_layer(layer)]
    shared = config.moe_shared_expert_intermediate_size or 0
    return values | {
        "q_lora_rank": latent.q_lora_rank,
        "kv_lora_rank": latent.kv_lora_rank,
        "qk_nope_head_dim": latent.qk_head_dim,
        "qk_rope_head_dim": latent.qk_pos_emb_head_dim,
        "v_head_dim": latent.v_head_dim,
        "rope_interleave": latent.rotary_interleaved,
        "first_k_dense_replace": len(dense_layers),
        "n_routed_experts": config.num_moe_experts,
        "num_experts_per_tok": config.moe_router_topk,
        "moe_intermediate_size": config.moe_ffn_hidden_size,
        "n_shared_experts": shared // config.moe_ffn_hidden_size,
        "norm_topk_prob": config.norm_topk_prob,
        "routed_scaling_factor": config.moe_router_topk_scaling_factor or 1.0,
        "n_group": config.moe_router_num_groups or 1,
        "topk_group": config.moe_router_group_topk or 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def _partly_rotated(values: dict[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """Of the classes in transformers, few take a share of each head; the others fail on it."""
    percent = {"partial_rotary_factor": config.rotary_percent}
    return values | percent | {"rope_parameters": values["rope_parameters"] | percent}


def _decoder(config: TransformerConfig) -> dict[str, Any]:
    """What Llama's successors have in common."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_query_groups,
        "head_dim": config.kv_channels,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.layernorm_epsilon,
        "hidden_act": ACTIVATIONS.get(config.activation, config.activation),
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
        "rope_theta": config.rotary_base,
        # transformers 5 reads this, and what wrote before it read the other two.
        "rope_parameters": _rope_parameters(config),
        **({} if config.rope_scaling is None else {"rope_scaling": _rope_parameters(config)}),
    }


def _rope_parameters(config: TransformerConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_theta": config.rotary_base, "rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is None:
        return values
    values |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        optional = {
            "attention_factor": scaling.attention_factor,
            "mscale": scaling.mscale,
            "mscale_all_dim": scaling.mscale_all_dim,
        }
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        values |= {name: value for name, value in optional.items() if value is not None}
    return values


def _first_window(config: TransformerConfig) -> int | None:
    return next((window for window in config.layer_windows if window is not None), None)


# Plainest first. What Megatron's arguments can say of none of the others needs the kept config.json.
CANDIDATES: Mapping[str, Candidate] = {
    "GPT2LMHeadModel": Candidate("gpt2", _gpt2),
    "LlamaForCausalLM": Candidate("llama", _llama),
    "MistralForCausalLM": Candidate("mistral", _mistral),
    "Qwen2ForCausalLM": Candidate("qwen2", _qwen2),
    "Qwen3ForCausalLM": Candidate("qwen3", _qwen3),
    "MixtralForCausalLM": Candidate("mixtral", _mixtral),
    "Qwen3MoeForCausalLM": Candidate("qwen3_moe", _qwen3_moe),
    "Phi3ForCausalLM": Candidate("phi3", _phi3),
    "GPTNeoXForCausalLM": Candidate("gpt_neox", _gpt_neox),
    "NemotronForCausalLM": Candidate("nemotron", _nemotron),
    "DeepseekV3ForCausalLM": Candidate("deepseek_v3", _deepseek_v3),
}
