"""Tiny random transformers models, one for each architecture and variation, made with a fixed seed.

Every parameter is random, norms and biases too, so that one that is not loaded or not used shows in the logits.
Windows are at most 7 tokens wide; a prompt must be longer to see them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from unit.kernels.cpu_backends import ISAS

VOCAB_SIZE = 128
MAX_SEQUENCE_LENGTH = 128

DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_SEQUENCE_LENGTH,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-3,  # large enough to be seen
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": MAX_SEQUENCE_LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "layer_norm_epsilon": 1e-3,
}
GPT_NEOX: dict[str, Any] = {
    name: value for name, value in DECODER.items() if name not in ("num_key_value_heads", "rms_norm_eps")
} | {"hidden_size": 64, "layer_norm_eps": 1e-3}
GEMMA: dict[str, Any] = DECODER | {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 6,
    "tie_word_embeddings": True,
    "num_hidden_layers": 4,
}
EXPERTS: dict[str, Any] = DECODER | {
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 1.7, 3.1, 6.3],
}
DEEPSEEK_V3: dict[str, Any] = DECODER | {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
}
NEMOTRON: dict[str, Any] = {name: value for name, value in DECODER.items() if name != "rms_norm_eps"} | {
    "norm_eps": 1e-3
}


@dataclass(frozen=True)
class ModelCase:
    """One tiny model: its transformers classes and config, and how long its sequences may get."""

    architecture: str
    config_class: str
    fields: dict[str, Any] = field(default_factory=dict)
    max_sequence_length: int = MAX_SEQUENCE_LENGTH
    shortest_prompt: int = 1
    """Where transformers takes another regime for shorter prompts."""
    longest_prompt: int = MAX_SEQUENCE_LENGTH
    """Where transformers takes another regime for longer prompts."""


def _llama(**fields: Any) -> ModelCase:
    return ModelCase("LlamaForCausalLM", "LlamaConfig", DECODER | fields)


def _scaled_llama(rope_type: str, **scaling: Any) -> ModelCase:
    return _llama(rope_parameters={"rope_type": rope_type, "rope_theta": 10000.0, **scaling})


def _qwen3_moe(**fields: Any) -> ModelCase:
    return ModelCase("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS | fields)


def _phi3(**fields: Any) -> ModelCase:
    return ModelCase("Phi3ForCausalLM", "Phi3Config", DECODER | fields)


def _gemma2(**fields: Any) -> ModelCase:
    softcaps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}
    return ModelCase("Gemma2ForCausalLM", "Gemma2Config", GEMMA | softcaps | fields)


def _gemma3(**fields: Any) -> ModelCase:
    return ModelCase("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA | fields)


def _neox(**fields: Any) -> ModelCase:
    return ModelCase("GPTNeoXForCausalLM", "GPTNeoXConfig", GPT_NEOX | fields)


def _neox_rope(percent: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": percent}


CASES: dict[str, ModelCase] = {
    "gpt2": ModelCase("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-scaled-by-layer": ModelCase(
        "GPT2LMHeadModel", "GPT2Config", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 80}
    ),
    "gpt2-untied": ModelCase(
        "GPT2LMHeadModel", "GPT2Config", GPT2 | {"tie_word_embeddings": False, "scale_attn_weights": False}
    ),
    "gpt-neox": _neox(rope_parameters=_neox_rope(0.25)),
    "gpt-neox-sequential": _neox(use_parallel_residual=False, rope_parameters=_neox_rope(1.0)),
    "gpt-neox-no-attention-bias": _neox(attention_bias=False, hidden_act="gelu_new"),
    "llama": _llama(),
    "llama-mha": _llama(num_key_value_heads=4),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True),
    "llama-attention-bias": _llama(attention_bias=True),
    "llama-head-dim": _llama(head_dim=16, num_key_value_heads=1),
    "llama-linear-rope": _scaled_llama("linear", factor=4.0),
    "llama-dynamic-rope": ModelCase(
        "LlamaForCausalLM",
        "LlamaConfig",
        DECODER
        | {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
        longest_prompt=32,
    ),
    "llama-llama3-rope": _scaled_llama(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "llama-yarn-rope": _scaled_llama("yarn", factor=4.0, original_max_position_embeddings=32),
    "llama-yarn-rope-mscale": _scaled_llama(
        "yarn",
        factor=8.0,
        original_max_position_embeddings=16,
        mscale=0.8,
        mscale_all_dim=0.5,
        truncate=False,
        beta_fast=4,
        beta_slow=0.5,
    ),
    "llama-yarn-rope-attention-factor": _scaled_llama(
        "yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.7
    ),
    "mistral": ModelCase("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 5}),
    "mistral-no-window": ModelCase("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": None}),
    "qwen2": ModelCase("Qwen2ForCausalLM", "Qwen2Config", DECODER | {"tie_word_embeddings": True}),
    "qwen2-window": ModelCase(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        DECODER | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ModelCase("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ModelCase("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 8, "attention_bias": True}),
    "phi3": _phi3(),
    "phi3-partial-rotary-window": _phi3(
        sliding_window=7,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "phi3-longrope-short": ModelCase(
        "Phi3ForCausalLM",
        "Phi3Config",
        DECODER | {"original_max_position_embeddings": 96, "rope_parameters": LONGROPE},
        max_sequence_length=96,
    ),
    "phi3-longrope-long": ModelCase(
        "Phi3ForCausalLM",
        "Phi3Config",
        DECODER | {"original_max_position_embeddings": 4, "rope_parameters": LONGROPE},
        shortest_prompt=5,
    ),
    "gemma2": _gemma2(),
    "gemma2-no-softcaps": _gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": _gemma3(sliding_window_pattern=3),
    "gemma3-scaled-rope": _gemma3(
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        final_logit_softcapping=3.0,
    ),
    "olmo2": ModelCase("Olmo2ForCausalLM", "Olmo2Config", DECODER),
    "olmo2-mha": ModelCase("Olmo2ForCausalLM", "Olmo2Config", DECODER | {"num_key_value_heads": 4}),
    "mixtral": ModelCase("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 4}),
    "mixtral-window": ModelCase(
        "MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 4, "sliding_window": 5}
    ),
    "nemotron": ModelCase("NemotronForCausalLM", "NemotronConfig", NEMOTRON),
    "deepseek-v3": ModelCase("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK_V3),
    "deepseek-v3-yarn": ModelCase(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        DEEPSEEK_V3
        | {
            "q_lora_rank": None,
            "v_head_dim": 16,
            "rope_interleave": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "mscale": 0.7,
                "mscale_all_dim": 0.9,
            },
        },
    ),
    "qwen3-moe": _qwen3_moe(norm_topk_prob=True),
    "qwen3-moe-unnormed": _qwen3_moe(norm_topk_prob=False),
    "qwen3-moe-some-dense": _qwen3_moe(norm_topk_prob=True, mlp_only_layers=[1], num_hidden_layers=4),
    "qwen3-moe-every-second": _qwen3_moe(norm_topk_prob=True, decoder_sparse_step=2, num_hidden_layers=4),
}
TINY_MODELS: list[str] = list(CASES)
# One of each kind of layer.
KINDS = ("gpt2", "llama", "gemma2", "qwen3-moe")


def models_and_kernels() -> list[Any]:
    """Test parameters (model, kernels): all models on the CPU's own kernels, one of each kind on the reference too.

    The others run on the reference in the slow suite, or by default where no kernels are compiled.
    """
    if not ISAS:
        return [pytest.param((name, "reference"), id=f"{name}-reference") for name in CASES]
    own = [pytest.param((name, "cpu"), id=f"{name}-cpu") for name in CASES]
    reference = [
        pytest.param((name, "reference"), id=f"{name}-reference", marks=() if name in KINDS else pytest.mark.slow)
        for name in CASES
    ]
    return own + reference


def make_tiny_model(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Saves the named model to `folder` and gives it back, in evaluation mode; equal for equal names."""
    model = make_random_model(CASES[name], name).to(dtype)
    model.save_pretrained(folder)
    return model


def make_random_model(case: ModelCase, seed: str) -> PreTrainedModel:
    """A model in evaluation mode whose parameters are all random; equal for equal seeds."""
    generator = torch.Generator().manual_seed(len(seed) * 1000 + sum(seed.encode()))
    config = getattr(transformers, case.config_class)(**case.fields)
    config._attn_implementation = "eager"  # the only one with soft-caps
    model: PreTrainedModel = getattr(transformers, case.architecture)(config)
    for parameter_name, parameter in model.named_parameters():
        fill = _filling(parameter_name, parameter)
        parameter.data = fill(parameter.shape, generator)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def _filling(name: str, parameter: torch.nn.Parameter) -> Callable[[torch.Size, torch.Generator], torch.Tensor]:
    """How a parameter is drawn, so that activations keep a size of about one and logits are not flat."""

    def norm(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        return 0.5 + torch.rand(shape, generator=generator)

    def bias(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    def weight(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    if name.endswith("bias"):
        return bias
    return norm if parameter.ndim == 1 else weight
