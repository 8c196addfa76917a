"""What Hugging Face checkpoints call the tensors that kilotron knows under Megatron's names.

Tables only, and the rearrangements that some of them need. Reads no files and knows nothing of models.
A table maps a module to the modules it is made of; `.weight` and `.bias` follow the same rule, and a tensor may have an
entry of its own. `{layer}` and `{expert}` stand for numbers: several names are concatenated in order (rows), and
experts are stacked.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Arrangement = Literal["plain", "transposed", "grouped_qkv", "single_row"]
LAYER_NUMBER = re.compile(r"(?<=layers\.)\d+")


class Source(NamedTuple):
    """Where one module's tensors come from."""

    names: tuple[str, ...]
    arrangement: Arrangement = "plain"
    """How the stored tensor lies; see `rearrange`."""


class TensorSource(NamedTuple):
    """Where one tensor comes from, with all names written out."""

    stacks: tuple[tuple[str, ...], ...]
    """One inner tuple per expert, a single one for anything else; its tensors are concatenated on the first axis."""
    arrangement: Arrangement


@dataclass(frozen=True, slots=True)
class WeightNames:
    """The naming style of a family of checkpoints."""

    modules: Mapping[str, Source]
    prefix: str
    """Leading part of most names that files written from the bare model leave out."""
    ignored: tuple[str, ...] = ()
    """Patterns of further names of tensors that hold nothing: tables and masks that can be computed."""

    def source_of(self, name: str, stored: Collection[str], num_experts: int = 0) -> TensorSource:
        """The source of a canonical tensor name, with the prefix as the `stored` names have it.

        Raises KeyError when this style has no such tensor.
        """
        layer = LAYER_NUMBER.search(name)
        key = LAYER_NUMBER.sub("{layer}", name)
        ending = ""
        if key not in self.modules:
            key, _, kind = key.rpartition(".")
            ending = f".{kind}"
        source = self.modules[key]
        experts = range(num_experts) if any("{expert}" in one for one in source.names) else range(1)

        def written_out(template: str, expert: int) -> str:
            full = f"{template.format(layer=layer and layer.group(), expert=expert)}{ending}"
            bare = full.removeprefix(self.prefix)
            return bare if bare in stored and full not in stored else full

        stacks = tuple(tuple(written_out(one, expert) for one in source.names) for expert in experts)
        return TensorSource(stacks, source.arrangement)

    def is_ignored(self, stored_name: str) -> bool:
        """Whether a stored tensor holds nothing that is needed."""
        return any(re.search(pattern, stored_name) for pattern in (*ALWAYS_IGNORED, *self.ignored))


def rearrange(stored: Tensor, arrangement: Arrangement, num_query_groups: int, kv_channels: int) -> Tensor:
    """A stored weight or bias with its rows in our order.

    transposed: GPT-2 stores weights [in, out]. grouped_qkv: GPT-NeoX and Megatron store, for each key-value head, its
    query heads, its key and its value; ours are all queries, all keys, all values. single_row: BART's vector with an
    axis more, whose name is no module's.
    """
    if arrangement == "single_row":
        return stored.squeeze(0)
    if arrangement == "transposed" and stored.ndim == 2:
        return stored.t()
    if arrangement == "grouped_qkv":
        groups = stored.unflatten(0, (num_query_groups, -1, kv_channels))
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
        return torch.cat([part.flatten(0, 2) for part in parts])
    return stored


def arrange_back(ours: Tensor, arrangement: Arrangement, num_query_groups: int, kv_channels: int) -> Tensor:
    """A weight or bias in our order as it is stored: what `rearrange` undoes."""
    if arrangement == "single_row":
        return ours.unsqueeze(0)
    if arrangement == "transposed" and ours.ndim == 2:
        return ours.t()
    if arrangement == "grouped_qkv":
        heads = ours.unflatten(0, (-1, kv_channels))
        num_queries = heads.shape[0] - 2 * num_query_groups
        query, key, value = heads.split([num_queries, num_query_groups, num_query_groups])
        # No -1: cross-attention has no queries here.
        groups = [part.unflatten(0, (num_query_groups, len(part) // num_query_groups)) for part in (query, key, value)]
        return torch.cat(groups, dim=1).flatten(0, 2)
    return ours


def stored_shape(shape: tuple[int, ...], arrangement: Arrangement) -> tuple[int, ...]:
    """The shape that a weight of this shape is stored in. Biases are never transposed."""
    if arrangement == "single_row":
        return (1, *shape)
    return shape[::-1] if arrangement == "transposed" else shape


ALWAYS_IGNORED = (r"rotary_emb\.inv_freq$",)

_LAYER = "decoder.layers.{layer}."
_HF_LAYER = "model.layers.{layer}."

_LLAMA_MODULES = {
    "embedding.word_embeddings": Source(("model.embed_tokens",)),
    _LAYER + "input_layernorm": Source((_HF_LAYER + "input_layernorm",)),
    _LAYER + "self_attention.linear_qkv": Source(
        (_HF_LAYER + "self_attn.q_proj", _HF_LAYER + "self_attn.k_proj", _HF_LAYER + "self_attn.v_proj")
    ),
    _LAYER + "self_attention.q_layernorm": Source((_HF_LAYER + "self_attn.q_norm",)),
    _LAYER + "self_attention.k_layernorm": Source((_HF_LAYER + "self_attn.k_norm",)),
    _LAYER + "self_attention.linear_proj": Source((_HF_LAYER + "self_attn.o_proj",)),
    _LAYER + "pre_mlp_layernorm": Source((_HF_LAYER + "post_attention_layernorm",)),
    _LAYER + "mlp.linear_fc1": Source((_HF_LAYER + "mlp.gate_proj", _HF_LAYER + "mlp.up_proj")),
    _LAYER + "mlp.linear_fc2": Source((_HF_LAYER + "mlp.down_proj",)),
    "decoder.final_layernorm": Source(("model.norm",)),
    "output_layer": Source(("lm_head",)),
}
_POST_NORMS = {
    _LAYER + "post_self_attn_layernorm": Source((_HF_LAYER + "post_attention_layernorm",)),
    _LAYER + "post_mlp_layernorm": Source((_HF_LAYER + "post_feedforward_layernorm",)),
}
_PHI3_MODULES = {
    _LAYER + "self_attention.linear_qkv": Source((_HF_LAYER + "self_attn.qkv_proj",)),
    _LAYER + "mlp.linear_fc1": Source((_HF_LAYER + "mlp.gate_up_proj",)),
}
_MIXTRAL_EXPERT = _HF_LAYER + "block_sparse_moe.experts.{expert}."
_MIXTRAL_MODULES = {
    _LAYER + "mlp.router": Source((_HF_LAYER + "block_sparse_moe.gate",)),
    _LAYER + "mlp.experts.linear_fc1": Source((_MIXTRAL_EXPERT + "w1", _MIXTRAL_EXPERT + "w3")),
    _LAYER + "mlp.experts.linear_fc2": Source((_MIXTRAL_EXPERT + "w2",)),
}
_QWEN3_EXPERT = _HF_LAYER + "mlp.experts.{expert}."
_QWEN3_MOE_MODULES = {
    _LAYER + "mlp.router": Source((_HF_LAYER + "mlp.gate",)),
    _LAYER + "mlp.experts.linear_fc1": Source((_QWEN3_EXPERT + "gate_proj", _QWEN3_EXPERT + "up_proj")),
    _LAYER + "mlp.experts.linear_fc2": Source((_QWEN3_EXPERT + "down_proj",)),
}
_NEMOTRON_MODULES = {_LAYER + "mlp.linear_fc1": Source((_HF_LAYER + "mlp.up_proj",))}
_SHARED_EXPERTS = _HF_LAYER + "mlp.shared_experts."
_DEEPSEEK_MODULES = {
    _LAYER + "self_attention.linear_q_proj": Source((_HF_LAYER + "self_attn.q_proj",)),
    _LAYER + "self_attention.linear_q_down_proj": Source((_HF_LAYER + "self_attn.q_a_proj",)),
    _LAYER + "self_attention.q_layernorm": Source((_HF_LAYER + "self_attn.q_a_layernorm",)),
    _LAYER + "self_attention.linear_q_up_proj": Source((_HF_LAYER + "self_attn.q_b_proj",)),
    _LAYER + "self_attention.linear_kv_down_proj": Source((_HF_LAYER + "self_attn.kv_a_proj_with_mqa",)),
    _LAYER + "self_attention.kv_layernorm": Source((_HF_LAYER + "self_attn.kv_a_layernorm",)),
    _LAYER + "self_attention.linear_kv_up_proj": Source((_HF_LAYER + "self_attn.kv_b_proj",)),
    _LAYER + "mlp.router.expert_bias": Source((_HF_LAYER + "mlp.gate.e_score_correction_bias",)),
    _LAYER + "mlp.shared_experts.linear_fc1": Source((_SHARED_EXPERTS + "gate_proj", _SHARED_EXPERTS + "up_proj")),
    _LAYER + "mlp.shared_experts.linear_fc2": Source((_SHARED_EXPERTS + "down_proj",)),
}
_GPT2_LAYER = "transformer.h.{layer}."
_NEOX_LAYER = "gpt_neox.layers.{layer}."

LLAMA = WeightNames(_LLAMA_MODULES, prefix="model.")
OLMO2 = WeightNames(_LLAMA_MODULES | _POST_NORMS, prefix="model.")
GEMMA = WeightNames(
    _LLAMA_MODULES | _POST_NORMS | {_LAYER + "pre_mlp_layernorm": Source((_HF_LAYER + "pre_feedforward_layernorm",))},
    prefix="model.",
)
PHI3 = WeightNames(_LLAMA_MODULES | _PHI3_MODULES, prefix="model.")
MIXTRAL = WeightNames(_LLAMA_MODULES | _MIXTRAL_MODULES, prefix="model.")
QWEN3_MOE = WeightNames(_LLAMA_MODULES | _QWEN3_MOE_MODULES, prefix="model.")
NEMOTRON = WeightNames(_LLAMA_MODULES | _NEMOTRON_MODULES, prefix="model.")
DEEPSEEK_V3 = WeightNames(_LLAMA_MODULES | _QWEN3_MOE_MODULES | _DEEPSEEK_MODULES, prefix="model.")
GPT2 = WeightNames(
    {
        "embedding.word_embeddings": Source(("transformer.wte",)),
        "embedding.position_embeddings": Source(("transformer.wpe",)),
        _LAYER + "input_layernorm": Source((_GPT2_LAYER + "ln_1",)),
        _LAYER + "self_attention.linear_qkv": Source((_GPT2_LAYER + "attn.c_attn",), "transposed"),
        _LAYER + "self_attention.linear_proj": Source((_GPT2_LAYER + "attn.c_proj",), "transposed"),
        _LAYER + "pre_mlp_layernorm": Source((_GPT2_LAYER + "ln_2",)),
        _LAYER + "mlp.linear_fc1": Source((_GPT2_LAYER + "mlp.c_fc",), "transposed"),
        _LAYER + "mlp.linear_fc2": Source((_GPT2_LAYER + "mlp.c_proj",), "transposed"),
        "decoder.final_layernorm": Source(("transformer.ln_f",)),
        "output_layer": Source(("lm_head",)),
    },
    prefix="transformer.",
    ignored=(r"\.attn\.(masked_)?bias$",),
)
GPT_NEOX = WeightNames(
    {
        "embedding.word_embeddings": Source(("gpt_neox.embed_in",)),
        _LAYER + "input_layernorm": Source((_NEOX_LAYER + "input_layernorm",)),
        _LAYER + "self_attention.linear_qkv": Source((_NEOX_LAYER + "attention.query_key_value",), "grouped_qkv"),
        _LAYER + "self_attention.linear_proj": Source((_NEOX_LAYER + "attention.dense",)),
        _LAYER + "pre_mlp_layernorm": Source((_NEOX_LAYER + "post_attention_layernorm",)),
        _LAYER + "mlp.linear_fc1": Source((_NEOX_LAYER + "mlp.dense_h_to_4h",)),
        _LAYER + "mlp.linear_fc2": Source((_NEOX_LAYER + "mlp.dense_4h_to_h",)),
        "decoder.final_layernorm": Source(("gpt_neox.final_layer_norm",)),
        "output_layer": Source(("embed_out",)),
    },
    prefix="gpt_neox.",
    ignored=(r"\.attention\.(masked_)?bias$",),
)
