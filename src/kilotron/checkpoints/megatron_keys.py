"""Where tensors lie in a Megatron `torch_dist` checkpoint: full tensors by their canonical names to keys and chunks.

As megatron-core 0.19 has it: equal layers are one tensor [layers, ...] under one key, and so are experts.
Knows names and shapes only.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kilotron.checkpoints.megatron_names import EXPERT, LAYER
from kilotron.checkpoints.output_tensor import OutputTensor

# Norms are stored with the linear layer they belong to, as in Transformer Engine's fused modules.
FUSED_NORMS = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm_",
}
ROUTER = "mlp.router.weight"
LATENT = "self_attention.linear_kv_down_proj.weight"
# Modules whose `_extra_state` megatron-core asks for when it loads; empty for all but FP8.
STATEFUL = re.compile(r"((self|cross)_attention\.linear_\w+|mlp\..*linear_fc[12]|^lm_head\.output_layer)\.weight$")
ATTENTION = re.compile(r"(self_attention\.linear_qkv|cross_attention\.linear_q)$")
# T5Model stores these under two names.
SECOND_NAMES = {
    "lm_head.output_layer.weight": "output_layer.weight",
    "lm_head.output_layer.bias": "output_layer.bias",
}


class Place(NamedTuple):
    """One chunk of a tensor in the checkpoint."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    """With leading ones for layer and expert."""
    global_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A canonical name in its parts; layer and expert are None where there are none."""

    key: str
    layer: int | None
    expert: int | None
    prefix: str


def place_tensors(tensors: Sequence[OutputTensor], *, has_fused_moe_norms: bool) -> dict[str, Place]:
    """The place of each tensor, by its canonical name.

    `has_fused_moe_norms`: megatron-core's local implementation stores the norm before experts with `mlp.linear_fc1`,
    as it does for dense layers; the Transformer Engine one stores it under its own name. With latent attention, all
    norms have their own names.
    """
    latent_layers = _layers_with(LATENT, tensors)
    moe_layers = () if has_fused_moe_norms else _layers_with(ROUTER, tensors)
    parsed = {}
    for tensor in tensors:
        fused = {"input_layernorm", "pre_mlp_layernorm"}
        if tensor.name.startswith(latent_layers):
            fused = set()
        elif tensor.name.startswith(moe_layers):
            fused = {"input_layernorm"}
        parsed[tensor.name] = _parse(tensor.name, fused)
    shapes = {tensor.name: (tensor.shape, tensor.dtype) for tensor in tensors}
    stacked = _count_equal_layers(parsed, shapes)
    num_experts = 1 + max((part.expert for part in parsed.values() if part.expert is not None), default=-1)
    places = {}
    for name, part in parsed.items():
        lead: list[tuple[int, int]] = []
        key = part.key
        if part.layer is not None and part.prefix in stacked:
            lead.append((part.layer, stacked[part.prefix]))
        elif part.layer is not None:
            key = f"{part.prefix}{part.layer}.{part.key.removeprefix(part.prefix)}"
        if part.expert is not None:
            lead.append((part.expert, num_experts))
        shape = shapes[name][0]
        places[name] = Place(
            key=key,
            offsets=(*(index for index, _ in lead), *(0 for _ in shape)),
            sizes=(*(1 for _ in lead), *shape),
            global_shape=(*(size for _, size in lead), *shape),
        )
    return places


def extra_state_keys(places: Mapping[str, Place]) -> list[str]:
    """The byte objects that megatron-core expects beside the weights."""
    keys = set()
    for place in places.values():
        if not STATEFUL.search(place.key):
            continue
        rank = len(place.global_shape) - 2
        index, count = place.offsets[:rank] or (0,), place.global_shape[:rank] or (1,)
        shard = f"_extra_state/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, count))}"
        module = place.key.removesuffix(".weight")
        keys.add(f"{module}.{shard}")
        if place.key in SECOND_NAMES:
            keys.add(f"{SECOND_NAMES[place.key].removesuffix('.weight')}.{shard}")
        if ATTENTION.search(module):
            keys.add(f"{module.rpartition('.')[0]}.core_attention.{shard}")
    return sorted(keys)


def _layers_with(ending: str, tensors: Sequence[OutputTensor]) -> tuple[str, ...]:
    """The beginnings of the names of all layers that have such a tensor."""
    return tuple(tensor.name.removesuffix(ending) for tensor in tensors if tensor.name.endswith(ending))


def _parse(name: str, fused: Collection[str]) -> _Parsed:
    layer = expert = None
    prefix = ""
    inner = name
    if match := LAYER.fullmatch(name):
        prefix, layer, inner = f"{match[1]}.", int(match[2]), match[3]
        module, _, kind = inner.rpartition(".")
        if module in fused:
            inner = FUSED_NORMS[module] + kind
    if match := EXPERT.fullmatch(inner):
        expert = int(match[2])
        inner = f"{match[1]}.experts.{match[3]}"
    return _Parsed(prefix + inner, layer, expert, prefix)


def _count_equal_layers(parsed: Mapping[str, _Parsed], shapes: Mapping[str, object]) -> dict[str, int]:
    """The number of layers of each stack all of whose layers have the same tensors, of the same shapes and dtypes."""
    stacks: dict[str, dict[int, set[object]]] = defaultdict(lambda: defaultdict(set))
    for name, part in parsed.items():
        if part.layer is not None:
            stacks[part.prefix][part.layer].add((part.key, part.expert, shapes[name]))
    return {prefix: len(layers) for prefix, layers in stacks.items() if _are_equal(layers)}


def _are_equal(layers: Mapping[int, set[object]]) -> bool:
    return len({frozenset(tensors) for tensors in layers.values()}) <= 1 and set(layers) == set(range(len(layers)))
