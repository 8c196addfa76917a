"""Pairs of tiny checkpoint folders: one quantized, one with the same weights in plain float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from unit.models.packed_matrices import Writer

HIDDEN, FFN, VOCAB = 64, 96, 40

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}
MIXTRAL = LLAMA | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}


def matrix_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Modules that checkpoints quantize."""
    shapes = {}
    for layer in (f"model.layers.{number}." for number in range(config["num_hidden_layers"])):
        shapes |= {layer + "self_attn.q_proj": (HIDDEN, HIDDEN), layer + "self_attn.o_proj": (HIDDEN, HIDDEN)}
        shapes |= {layer + f"self_attn.{name}_proj": (HIDDEN // 2, HIDDEN) for name in "kv"}
        if "num_local_experts" in config:
            for expert in (f"{layer}block_sparse_moe.experts.{number}." for number in range(4)):
                shapes |= {expert + "w1": (FFN, HIDDEN), expert + "w3": (FFN, HIDDEN), expert + "w2": (HIDDEN, FFN)}
        else:
            shapes |= {layer + f"mlp.{name}_proj": (FFN, HIDDEN) for name in ("gate", "up")}
            shapes[layer + "mlp.down_proj"] = (HIDDEN, FFN)
    return shapes


def other_tensors(config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Embeddings, norms, routers and the output layer: plain in both folders."""
    tensors = {"model.norm.weight": torch.ones(HIDDEN)}
    names = ["model.embed_tokens", "lm_head"]
    tensors |= {f"{name}.weight": torch.randn(VOCAB, HIDDEN, generator=generator) for name in names}
    for layer in (f"model.layers.{number}." for number in range(config["num_hidden_layers"])):
        tensors |= {
            layer + f"{name}.weight": torch.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")
        }
        if config["architectures"] == QWEN3["architectures"]:
            tensors |= {layer + f"self_attn.{name}_norm.weight": torch.ones(16) for name in "qk"}
        if "num_local_experts" in config:
            tensors[layer + "block_sparse_moe.gate.weight"] = torch.randn(4, HIDDEN, generator=generator)
    return tensors


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def quantized_tensors(
    config: dict[str, Any], writer: Writer, plainly: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the quantized and of the plain folder; modules named `plainly` are plain in both."""
    rng = np.random.default_rng(0)
    others = other_tensors(config, torch.Generator().manual_seed(0))
    quantized, plain = dict(others), dict(others)
    for module, shape in matrix_shapes(config).items():
        packed = writer.write(rng, shape)
        plain[f"{module}.weight"] = packed.plain
        if module.endswith(plainly):
            quantized[f"{module}.weight"] = packed.plain
        else:
            quantized |= {f"{module}.{suffix}": value for suffix, value in packed.tensors.items()}
    return quantized, plain


def write_pair(
    folder: Path, config: dict[str, Any], writer: Writer, plainly: tuple[str, ...] = ("?",)
) -> tuple[Path, Path]:
    """The quantized folder and the plain one."""
    quantized, plain = quantized_tensors(config, writer, plainly)
    settings = {"quantization_config": writer.settings}
    return write_folder(folder / "quantized", config | settings, quantized), write_folder(
        folder / "plain", config, plain
    )
