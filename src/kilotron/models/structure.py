"""Compares the structures of two models: what one form can say in several ways counts once."""

from dataclasses import fields, replace
from typing import Any

from kilotron.models.transformer_config import LatentAttention, RopeScaling, TransformerConfig

# What they are without the part that they describe.
UNUSED_EXPERTS: dict[str, Any] = {"moe_router_topk": 1, "norm_topk_prob": True, "moe_ffn_hidden_size": None}
UNUSED_ROTATION: dict[str, Any] = {"rotary_base": 1.0, "rotary_percent": 1.0, "rope_scaling": None}
# Told beside the structure.
NO_STRUCTURE: dict[str, Any] = {"eos_token_ids": (), "bos_token_id": None}


def differences(found: TransformerConfig, wanted: TransformerConfig) -> list[str]:
    """Each field in which two structures differ, with both values."""
    one, other = _plain_form(found), _plain_form(wanted)
    return [
        f"{field.name} = {getattr(one, field.name)!r}, not {getattr(other, field.name)!r}"
        for field in fields(TransformerConfig)
        if getattr(one, field.name) != getattr(other, field.name)
    ]


def _plain_form(config: TransformerConfig) -> TransformerConfig:
    has_experts = config.num_moe_experts is not None
    layers = () if not has_experts or all(config.moe_layer_freq) else config.moe_layer_freq
    changes: dict[str, Any] = {
        "layer_windows": config.layer_windows if any(window is not None for window in config.layer_windows) else (),
        "moe_layer_freq": layers,
        # With experts in all layers, nothing has the size of a dense one.
        "ffn_hidden_size": config.ffn_hidden_size if not has_experts or layers else 1,
        "rope_scaling": plain_scaling(config.rope_scaling),
        "softmax_scale": config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale,
        "latent_attention": _plain_latent(config),
        **NO_STRUCTURE,
        **({} if has_experts else UNUSED_EXPERTS),
        **({} if config.rotates else UNUSED_ROTATION),
    }
    return replace(config, **changes)


def _plain_latent(config: TransformerConfig) -> LatentAttention | None:
    latent = config.latent_attention
    return None if latent is None else replace(latent, norm_epsilon=latent.norm_epsilon or config.layernorm_epsilon)


def plain_scaling(scaling: RopeScaling | None) -> RopeScaling | None:
    """The scaling in one form; of yarn, what its two multipliers come to, as one factor."""
    if scaling is None or scaling.kind != "yarn":
        return scaling
    factor = round(scaling.yarn_attention_factor, 12)
    return replace(scaling, attention_factor=factor, mscale=None, mscale_all_dim=None)
