"""One name for each tensor of a Megatron model, whichever layer specification and format wrote it.

The canonical names are those of Megatron's local layers, one per layer and expert:
`decoder.layers.3.self_attention.linear_qkv.weight`, `decoder.layers.3.mlp.experts.local_experts.7.linear_fc1.weight`.
A name that is not known is kept as it is.
"""

import re
from collections.abc import Iterator, Mapping

from kilotron.checkpoints.damage import broken
from kilotron.checkpoints.shard_index import MAX_TENSORS
from kilotron.checkpoints.sharded_tensor import ShardedTensor

COMMON_STATE = "common_state/shard_0_1"  # everything that is no tensor, since megatron-core 0.19
WRAPPER_PREFIX = re.compile(r"^(?:(?:model|module)\.)+")
IGNORED = re.compile(
    r"(^|\.)optimizer(_state)?\.|^(chained_\d+\.)?(optimizer|opt_param_scheduler|rng_state|rerun_state_machine_state)"
    r"|_extra_state\d*(/|$|\.)|^(rng_state|common_state|args|iteration|checkpoint_version)\b"
)
LAYER = re.compile(r"(.*\blayers)\.(\d{1,9})\.(.*)", re.ASCII)
EXPERT = re.compile(r"(.*\bexperts)\.local_experts\.(\d{1,9})\.(.*)", re.ASCII)
STACKED_LAYERS = re.compile(r"^(.*\blayers)\.(?!\d)(.*)$")
STACKED_EXPERTS = re.compile(r"^(.*\.mlp\.experts)\.experts\.(?!\d)(.*)$")
GATE, UP = "_w", "_v"

_RENAMED = (
    # Transformer Engine keeps a norm inside the linear layer behind it, and Megatron's distributed format all do.
    (r"\.self_attention\.linear_(?:qkv|qkv_down_proj)\.layer_norm_(weight|bias)$", r".input_layernorm.\1"),
    (r"\.self_attention\.linear_q_up_proj\.layer_norm_(weight|bias)$", r".self_attention.q_layernorm.\1"),
    (r"\.self_attention\.linear_kv_up_proj\.layer_norm_(weight|bias)$", r".self_attention.kv_layernorm.\1"),
    (r"\.cross_attention\.linear_q\.layer_norm_(weight|bias)$", r".pre_cross_attn_layernorm.\1"),
    (r"\.mlp\.linear_fc1\.layer_norm_(weight|bias)$", r".pre_mlp_layernorm.\1"),
    (r"\.mlp\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$", r".mlp.experts.local_experts.\3.\1.\2"),
    # With the metadata `singleton_local_shards`, experts are not stacked.
    (r"\.mlp\.experts\.experts\.(\d+)\.", r".mlp.experts.local_experts.\1."),
)
_DUPLICATES = {
    # T5Model stores these under two names.
    "output_layer.weight": "lm_head.output_layer.weight",
    "output_layer.bias": "lm_head.output_layer.bias",
    "position_embeddings.weight": "embedding.position_embeddings.weight",
}


def is_weight(stored_name: str) -> bool:
    """Whether a stored tensor can belong to the model, and not to the optimizer or to the training's state."""
    return IGNORED.search(stored_name) is None


def canonical_name(stored_name: str) -> str:
    """The name of a tensor that is stored for one layer and one expert."""
    name = WRAPPER_PREFIX.sub("", stored_name)
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def canonical_tensors(stored: Mapping[str, ShardedTensor]) -> dict[str, ShardedTensor]:
    """All tensors by their canonical names, stacks of layers and experts split.

    Raises:
        BrokenCheckpointError: two stored tensors have the same canonical name, or a stack is not one.
    """
    tensors: dict[str, ShardedTensor] = {}
    for stored_name, tensor in stored.items():
        for name, part in _split(WRAPPER_PREFIX.sub("", stored_name), tensor):
            canonical = canonical_name(name)
            if canonical in tensors:
                expected = f"one tensor for {canonical}"
                raise broken(
                    part.info.file, tensor=stored_name, expected=expected, found=f"also {tensors[canonical].name}"
                )
            if len(tensors) == MAX_TENSORS:
                raise broken(part.info.file, expected=f"at most {MAX_TENSORS} tensors", found="more")
            tensors[canonical] = part
    for name in [name for name in tensors if name.endswith(GATE)]:
        _join_halves(tensors, name)
    drop_duplicates(tensors)
    return tensors


def drop_duplicates(tensors: dict[str, ShardedTensor]) -> None:
    """Leaves one of tensors that are stored under two names."""
    for duplicate, name in _DUPLICATES.items():
        if name in tensors:
            tensors.pop(duplicate, None)


def _join_halves(tensors: dict[str, ShardedTensor], gate_name: str) -> None:
    """Gate and up of an MLP under their usual name, where they were stored as two tensors."""
    name = gate_name.removesuffix(GATE)
    gate, up = tensors[gate_name], tensors.get(name + UP)
    if up is not None and (gate.shape, gate.dtype) == (up.shape, up.dtype) and gate.shape:
        pieces = [*gate.pieces, *(piece.moved(0, gate.shape[0]) for piece in up.pieces)]
        tensors[name] = ShardedTensor(gate.name, gate.dtype, (2 * gate.shape[0], *gate.shape[1:]), pieces)
        del tensors[gate_name], tensors[name + UP]


def _split(name: str, tensor: ShardedTensor) -> Iterator[tuple[str, ShardedTensor]]:
    if match := STACKED_LAYERS.match(name):
        layers, rest = match.groups()
        for layer, part in enumerate(tensor.split()):
            yield from _split(f"{layers}.{layer}.{rest}", part)
    elif match := STACKED_EXPERTS.match(name):
        experts, rest = match.groups()
        for expert, part in enumerate(tensor.split()):
            yield f"{experts}.local_experts.{expert}.{rest}", part
    else:
        yield name, tensor
