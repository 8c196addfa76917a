"""Reads Megatron-Bridge's run_config.yaml as if it were the arguments that Megatron itself saves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kilotron.checkpoints.bounded_file import read_bounded
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.megatron_args import plain_values

RUN_CONFIG_FILE = "run_config.yaml"
MAX_YAML_BYTES = 1_000_000
TOKENIZER_FIELDS = ("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file")


def read_run_config(file: Path) -> dict[str, Any]:
    """The model's fields under the names that Megatron's arguments have. No class that the file names is imported.

    Raises:
        BrokenCheckpointError: it is missing, too large, not YAML, or has no `model`.
    """
    sections = plain_values(_read_yaml(file), file=file)
    model = sections.get("model")
    if not isinstance(model, dict) or "num_layers" not in model:
        raise broken(file, expected="the fields of a `model`", found=shown(model))
    fields = {name: _without_target(value) for name, value in model.items() if name != "_target_"}
    tokenizer = sections.get("tokenizer")
    if isinstance(tokenizer, dict):
        fields |= {name: tokenizer[name] for name in TOKENIZER_FIELDS if name in tokenizer}
    return fields | _renamed(fields)


def _read_yaml(file: Path) -> dict[Any, Any]:
    import yaml

    from kilotron.checkpoints.plain_yaml import load_plain_yaml

    text = read_bounded(file, MAX_YAML_BYTES, content="YAML")
    try:
        content = load_plain_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, LookupError, AttributeError) as error:
        raise broken(file, expected="plain YAML", found=f"an error ({shown(str(error))})") from error
    if not isinstance(content, dict):
        raise broken(file, expected="sections of YAML", found=f"a {type(content).__name__}")
    return content


def _without_target(value: Any) -> Any:
    """The last name of a function, dtype or enum's member that the file spells as where to import it from."""
    if not isinstance(value, dict) or not isinstance(target := value.get("_target_"), str):
        return value
    name = target.rpartition(".")[2]
    if isinstance(value.get("_name_"), str):
        return f"{name}.{value['_name_']}"
    arguments = value.get("_args_")
    return f"{name}({', '.join(map(str, arguments[:5]))})" if isinstance(arguments, list) and arguments else name


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What has another name, or another sense, among Megatron's arguments."""
    activation, is_gated = fields.get("activation_func"), bool(fields.get("gated_linear_unit"))
    names = {
        "untie_embeddings_and_output_weights": not fields.get("share_embeddings_and_output_weights", True),
        "swiglu": is_gated and activation == "silu",
        "quick_geglu": is_gated and activation == "quick_gelu",
        "squared_relu": not is_gated and activation == "squared_relu",
        "bias_gelu_fusion": bool(fields.get("bias_activation_fusion")),
        "group_query_attention": fields.get("num_query_groups") is not None,
        "num_experts": fields.get("num_moe_experts"),
        "max_position_embeddings": fields.get("max_position_embeddings") or fields.get("seq_length"),
        "rotary_seq_len_interpolation_factor": fields.get("seq_len_interpolation_factor"),
    }
    if (factor := fields.get("scale_factor")) is not None:  # Llama 3.1's, which is in no other model's fields
        names |= {"use_rope_scaling": True, "rope_scaling_factor": factor}
    return names
