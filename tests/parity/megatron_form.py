"""Tiny transformers models written as Megatron checkpoints are read: canonical names, grouped qkv, saved arguments.

The rules are spelled out here once more, for the reader's own tables are what is to be tested.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
BASE_ARGS: dict[str, Any] = {
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "bias_gelu_fusion": False,
    "group_query_attention": False,
    "num_query_groups": 1,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "normalization": "RMSNorm",
    "window_size": None,
    "params_dtype": torch.float32,
    "moe_router_topk": 2,
    "moe_layer_freq": 1,
}
ATTENTION_NAMES = {
    "o_proj": "linear_proj",
    "q_norm": "q_layernorm",
    "k_norm": "k_layernorm",
    "q_a_proj": "linear_q_down_proj",
    "q_a_layernorm": "q_layernorm",
    "q_b_proj": "linear_q_up_proj",
    "kv_a_proj_with_mqa": "linear_kv_down_proj",
    "kv_a_layernorm": "kv_layernorm",
    "kv_b_proj": "linear_kv_up_proj",
}


@dataclass(frozen=True)
class MemoryTensor:
    """What is known of a tensor."""

    tensor: Tensor
    file: Path = Path("memory")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return DTYPE_NAMES[self.tensor.dtype]


class MemoryCheckpoint:
    """A Megatron checkpoint that lies in memory, as far as loading is concerned."""

    def __init__(self, args: Mapping[str, Any], tensors: State) -> None:
        self.config = {"architectures": ["MegatronGPT"], **args}
        self.tensors = {name: MemoryTensor(tensor) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name].tensor.clone()

    def drop_pages(self) -> None:
        """Nothing lies in a file."""


def group_qkv(query: Tensor, key: Tensor, value: Tensor, num_groups: int, head_size: int) -> Tensor:
    """Rows of each query group: its query heads, its key, its value."""
    per_group = len(query) // num_groups
    parts = []
    for group in range(num_groups):
        parts.append(query[group * per_group : (group + 1) * per_group])
        parts += [x[group * head_size : (group + 1) * head_size] for x in (key, value)]
    return torch.cat(parts)


def saved_args(config: Any, **more: Any) -> dict[str, Any]:
    """What Megatron would have saved for the sizes of a transformers config."""
    num_heads = config.num_attention_heads
    num_groups = getattr(config, "num_key_value_heads", num_heads)
    args = BASE_ARGS | {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": num_heads,
        "kv_channels": getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        "padded_vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "untie_embeddings_and_output_weights": not config.tie_word_embeddings,
    }
    if num_groups != num_heads:
        args |= {"group_query_attention": True, "num_query_groups": num_groups}
    if hasattr(config, "intermediate_size"):
        args["ffn_hidden_size"] = config.intermediate_size
    if hasattr(config, "rope_parameters"):
        args["rotary_base"] = config.rope_parameters["rope_theta"]
    if hasattr(config, "rms_norm_eps"):
        args["layernorm_epsilon"] = config.rms_norm_eps
    return args | more


def convert_shell(state: State, tied: bool) -> dict[str, Tensor]:
    """Embedding, final norm and output layer of the Llama family."""
    tensors = {"embedding.word_embeddings.weight": state["model.embed_tokens.weight"]}
    tensors |= renamed(state, "model.norm", "decoder.final_layernorm")
    return tensors if tied else tensors | {"output_layer.weight": state["lm_head.weight"]}


def convert_attention(state: State, theirs: str, ours: str, num_groups: int, head_size: int) -> dict[str, Tensor]:
    """The attention of the Llama family, biases and head norms included, or DeepSeek's latent one."""
    tensors = {}
    for kind in ("weight", "bias"):
        if f"{theirs}.k_proj.{kind}" in state:
            parts = [state[f"{theirs}.{name}_proj.{kind}"] for name in "qkv"]
            tensors[f"{ours}.linear_qkv.{kind}"] = group_qkv(*parts, num_groups=num_groups, head_size=head_size)
    for their_name, our_name in ATTENTION_NAMES.items():
        tensors |= renamed(state, f"{theirs}.{their_name}", f"{ours}.{our_name}")
    if f"{theirs}.k_proj.weight" not in state:
        tensors |= renamed(state, f"{theirs}.q_proj", f"{ours}.linear_q_proj")
    if f"{theirs}.sinks" in state:
        tensors[f"{ours}.core_attention.softmax_offset"] = state[f"{theirs}.sinks"]
    return tensors


def convert_gated_mlp(state: State, theirs: str, ours: str) -> dict[str, Tensor]:
    """Gate rows above up rows."""
    gate_up = torch.cat((state[f"{theirs}.gate_proj.weight"], state[f"{theirs}.up_proj.weight"]))
    return {f"{ours}.linear_fc1.weight": gate_up, f"{ours}.linear_fc2.weight": state[f"{theirs}.down_proj.weight"]}


def renamed(state: State, theirs: str, ours: str) -> dict[str, Tensor]:
    """A module's tensors, as far as it has any."""
    kinds = ("weight", "bias")
    return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in kinds if f"{theirs}.{kind}" in state}


def convert_layers(
    model: Any, convert_mlp: Callable[[State, str, str, int], dict[str, Tensor]], state: State | None = None
) -> dict[str, Tensor]:
    """A model of the Llama family; `convert_mlp(state, theirs, ours, layer)` does the part after attention."""
    config, state = model.config, state or model.state_dict()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tensors = convert_shell(state, config.tie_word_embeddings)
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
        tensors |= renamed(state, f"{theirs}.input_layernorm", f"{ours}.input_layernorm")
        tensors |= renamed(state, f"{theirs}.post_attention_layernorm", f"{ours}.pre_mlp_layernorm")
        attention = f"{theirs}.self_attn", f"{ours}.self_attention"
        tensors |= convert_attention(state, *attention, config.num_key_value_heads, head_size)
        tensors |= convert_mlp(state, f"{theirs}.mlp", f"{ours}.mlp", layer)
    return tensors
