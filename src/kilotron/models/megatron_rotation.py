"""Positions in Megatron's saved arguments: learned, rotated in one of its ways, or none."""

import math
from typing import Any

from kilotron.models.config_fields import ConfigFields
from kilotron.models.transformer_config import RopeScaling, yarn_magnitude

KINDS = {"learned_absolute": "learned", "rope": "rope", "yarn": "rope", "none": "none"}
# Of Llama 3.1; fixed in Megatron.
LLAMA3_LENGTH = 8192
LEAST_FACTOR = 2**-20


def read_positions(args: ConfigFields) -> dict[str, Any]:
    """The fields of TransformerConfig that tell how positions enter the model."""
    is_old_rope = args.flag("use_rotary_position_embeddings", False)  # of versions that had no kinds
    kind = args.text("position_embedding_type", "rope" if is_old_rope else "learned_absolute")
    if kind not in KINDS:
        raise args.wrong("position_embedding_type", f"one of {', '.join(KINDS)}")
    fields: dict[str, Any] = {
        "position_embedding_type": KINDS[kind],
        "max_position_embeddings": _longest_sequence(args),
    }
    if args.flag("multi_latent_attention", False):
        return fields | _latent_rotation(args, kind)
    if KINDS[kind] != "rope":
        return fields
    scaling = _scaling(args)
    fields |= {
        "rotary_base": args.number("rotary_base", 10000.0),
        "rotary_percent": min(args.number("rotary_percent", 1.0), 1.0),
        "rotary_interleaved": args.flag("rotary_interleaved", False),
        "rope_scaling": scaling,
        "no_rope_layers": _no_rope_layers(args),
    }
    if kind == "yarn":
        if fields["rotary_interleaved"]:
            raise args.wrong("rotary_interleaved", "false, with position_embedding_type = 'yarn',")
        # Megatron's rotates whole heads, whatever rotary_percent says.
        return fields | {"rotary_percent": 1.0, "rope_scaling": _yarn(args, prefix="yarn_")}
    if scaling is not None and scaling.kind == "linear":
        # The length that was saved is the stretched one.
        fields["max_position_embeddings"] = scaling.original_max_position_embeddings
    return fields


def _longest_sequence(args: ConfigFields) -> int:
    """Older versions save the length of training sequences alone."""
    return args.count("max_position_embeddings" if "max_position_embeddings" in args else "seq_length")


def _latent_rotation(args: ConfigFields, kind: str) -> dict[str, Any]:
    """Latent attention rotates whatever the position embedding is, by `rope_type`."""
    if kind == "yarn":
        raise args.wrong("position_embedding_type", "'rope', with multi_latent_attention,")
    if args.flag("rotary_interleaved", False):
        raise args.wrong("rotary_interleaved", "false, with multi_latent_attention,")
    rope_type = args.text("rope_type", "yarn")
    if rope_type not in ("rope", "yarn"):
        raise args.wrong("rope_type", "'rope' or 'yarn'")
    if rope_type == "rope" and args.number("rotary_percent", 1.0) < 1:
        raise args.wrong("rotary_percent", "1, with multi_latent_attention,")
    if _no_rope_layers(args):
        raise args.wrong("no_rope_freq", "nothing, with multi_latent_attention,")
    # Whatever the rope_type: Megatron multiplies by it always.
    magnitude = yarn_magnitude(args.number("rotary_scaling_factor", 40.0), args.number("mscale_all_dim", 0.0))
    head_size = args.count("qk_head_dim", 128) + args.count("qk_pos_emb_head_dim", 64)
    return {
        "rotary_base": args.number("rotary_base", 10000.0),
        "rope_scaling": _yarn(args, prefix="") if rope_type == "yarn" else None,
        "softmax_scale": magnitude**2 * head_size**-0.5,
    }


def _scaling(args: ConfigFields) -> RopeScaling | None:
    factor = args.optional_number("rotary_seq_len_interpolation_factor")
    # Megatron-Bridge has the same flag under the model class's name of it.
    if not args.flag("use_rope_scaling", args.values.get("rope_scaling") is True):
        if factor is None or factor == 1:
            return None
        if factor < LEAST_FACTOR:
            raise args.wrong("rotary_seq_len_interpolation_factor", "a number above 0")
        original = max(math.ceil(_longest_sequence(args) / factor), 1)
        return RopeScaling(kind="linear", factor=factor, original_max_position_embeddings=original)
    if factor not in (None, 1):
        raise args.wrong("rotary_seq_len_interpolation_factor", "nothing, with use_rope_scaling,")
    return RopeScaling(
        kind="llama3",
        factor=args.number("rope_scaling_factor", 8.0),
        original_max_position_embeddings=LLAMA3_LENGTH,
    )


def _yarn(args: ConfigFields, prefix: str) -> RopeScaling:
    """Yarn's numbers, which are saved with or without `prefix`."""

    def number(name: str, default: float) -> float:
        return args.number(f"{prefix}{name}", args.number(name, default))

    factor = number("rotary_scaling_factor", 40.0 if not prefix else 1.0)
    mscale, mscale_all_dim = number("mscale", 1.0), number("mscale_all_dim", 0.0)
    original = f"{prefix}original_max_position_embeddings"
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=args.count(original, args.count("original_max_position_embeddings", 4096)),
        attention_factor=yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        truncate=args.flag(f"{prefix}correction_range_round_to_int", True),
    )


def _no_rope_layers(args: ConfigFields) -> tuple[bool, ...]:
    """Every n-th layer, or the layers marked 1 in a list, are not rotated."""
    marks, num_layers = args.integers("no_rope_freq"), args.count("num_layers")
    if not marks:
        return ()
    if isinstance(args.values["no_rope_freq"], list):
        if len(marks) != num_layers:
            raise args.wrong("no_rope_freq", f"a number for each of {num_layers} layers")
        return tuple(bool(mark) for mark in marks)
    every = args.count("no_rope_freq")
    return tuple((layer + 1) % every == 0 for layer in range(num_layers))
