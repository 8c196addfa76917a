"""Rotary fields of a config.json, in all the forms they are found in, to those of TransformerConfig.

Older files have `rope_theta` and `rope_scaling` (with `type` or `rope_type`); transformers 5 writes `rope_parameters`.
"""

from typing import Any

from kilotron.models.config_fields import ConfigFields
from kilotron.models.transformer_config import RopeScaling, RopeScalingKind

KINDS: dict[str, RopeScalingKind] = {
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",  # Phi-3's first name for it
}


def read_rope(fields: ConfigFields, default_base: float = 10000.0, default_percent: float = 1.0) -> dict[str, Any]:
    """`rotary_base`, `rotary_percent` and `rope_scaling` of TransformerConfig."""
    rope = rope_section(fields)
    base_name = "rope_theta" if "rope_theta" in fields else "rotary_emb_base"
    percent_name = "partial_rotary_factor" if "partial_rotary_factor" in fields else "rotary_pct"
    return {
        "rotary_base": rope.number("rope_theta", fields.number(base_name, default_base)),
        "rotary_percent": rope.number("partial_rotary_factor", fields.number(percent_name, default_percent)),
        "rope_scaling": read_rope_scaling(fields, rope),
    }


def rope_section(fields: ConfigFields) -> ConfigFields:
    """The dictionary that describes rotation; an older one wins where both are given, as in transformers."""
    return fields.section("rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters")


def read_rope_scaling(fields: ConfigFields, rope: ConfigFields) -> RopeScaling | None:
    """The scaling in `rope`; lengths it leaves out are those of the model in `fields`."""
    kind_name = rope.text("rope_type", rope.text("type", "default"))
    if kind_name == "default":
        return None
    if kind_name not in KINDS:
        raise rope.wrong("rope_type" if "rope_type" in rope else "type", f"one of {', '.join(['default', *KINDS])}")
    # Early Phi-3 files say "yarn" and mean longrope; only the latter has lists of factors.
    kind: RopeScalingKind = "longrope" if "short_factor" in rope else KINDS[kind_name]
    length = fields.integer("max_position_embeddings")
    original_length = length
    if kind in ("llama3", "yarn", "longrope"):
        original_length = rope.integer("original_max_position_embeddings", length)
        original_length = fields.integer("original_max_position_embeddings", original_length)
    stretched = length / original_length if kind in ("yarn", "longrope") else None
    return RopeScaling(
        kind=kind,
        factor=rope.number("factor", stretched),
        original_max_position_embeddings=original_length,
        attention_factor=rope.optional_number("attention_factor"),
        **_llama3_fields(rope, kind),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
        short_factor=rope.numbers("short_factor"),
        long_factor=rope.numbers("long_factor"),
    )


def _llama3_fields(rope: ConfigFields, kind: str) -> dict[str, float]:
    names = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    return {name: rope.number(name) for name in names}
