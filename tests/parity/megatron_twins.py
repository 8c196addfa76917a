"""Tiny transformers models and how each is written in the form of a Megatron checkpoint."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from parity import megatron_form as form
from parity.megatron_form import MemoryCheckpoint, State
from parity.tiny_models import DECODER, DEEPSEEK_V3, EXPERTS, GPT2, NEMOTRON, ModelCase


class Twin(NamedTuple):
    """A transformers model, and how to write it as Megatron would have."""

    case: ModelCase
    convert: Callable[[PreTrainedModel], MemoryCheckpoint]


def _from_llama(model: Any, **args: Any) -> MemoryCheckpoint:
    return MemoryCheckpoint(form.saved_args(model.config, swiglu=True, **args), form.convert_layers(model, _dense))


def _from_llama_with_biases(model: Any) -> MemoryCheckpoint:
    """Megatron has biases everywhere or nowhere (but for qkv), and norms have theirs: all but those of norms."""
    args = form.saved_args(model.config, swiglu=True, add_bias_linear=True)
    return MemoryCheckpoint(args, form.convert_layers(model, _dense_with_biases))


def _from_qwen3(model: Any) -> MemoryCheckpoint:
    return _from_llama(model, qk_layernorm=True)


def _from_qwen2(model: Any) -> MemoryCheckpoint:
    return _from_llama(model, add_qkv_bias=True)


def _from_llama31(model: Any) -> MemoryCheckpoint:
    return _from_llama(model, use_rope_scaling=True, rope_scaling_factor=4.0)


def _from_mistral(model: Any) -> MemoryCheckpoint:
    return _from_llama(model, window_size=(model.config.sliding_window - 1, 0))


def _from_gpt2(model: Any) -> MemoryCheckpoint:
    config, state = model.config, model.state_dict()
    tensors = {
        "embedding.word_embeddings.weight": state["transformer.wte.weight"],
        "embedding.position_embeddings.weight": state["transformer.wpe.weight"],
    } | form.renamed(state, "transformer.ln_f", "decoder.final_layernorm")
    head_size = config.n_embd // config.n_head
    for layer in range(config.n_layer):
        theirs, ours = f"transformer.h.{layer}", f"decoder.layers.{layer}"
        tensors |= form.renamed(state, f"{theirs}.ln_1", f"{ours}.input_layernorm")
        tensors |= form.renamed(state, f"{theirs}.ln_2", f"{ours}.pre_mlp_layernorm")
        for kind in ("weight", "bias"):
            parts = state[f"{theirs}.attn.c_attn.{kind}"].t().chunk(3)
            tensors[f"{ours}.self_attention.linear_qkv.{kind}"] = form.group_qkv(*parts, config.n_head, head_size)
            for their_name, our_name in [
                ("attn.c_proj", "self_attention.linear_proj"),
                ("mlp.c_fc", "mlp.linear_fc1"),
                ("mlp.c_proj", "mlp.linear_fc2"),
            ]:
                tensors[f"{ours}.{our_name}.{kind}"] = state[f"{theirs}.{their_name}.{kind}"].t().contiguous()
    args = form.saved_args(config) | {
        "position_embedding_type": "learned_absolute",
        "normalization": "LayerNorm",
        "layernorm_epsilon": config.layer_norm_epsilon,
        "add_bias_linear": True,
        "bias_gelu_fusion": True,
        "ffn_hidden_size": 4 * config.n_embd,
    }
    return MemoryCheckpoint(args, tensors)


def _from_experts(model: Any, **args: Any) -> MemoryCheckpoint:
    config = model.config
    sizes = {
        "num_experts": getattr(config, "num_local_experts", None) or config.num_experts,
        "moe_router_topk": config.num_experts_per_tok,
        "moe_ffn_hidden_size": getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
    }
    return MemoryCheckpoint(form.saved_args(config, swiglu=True, **sizes, **args), form.convert_layers(model, _experts))


def _from_qwen3_moe(model: Any) -> MemoryCheckpoint:
    is_pre = not model.config.norm_topk_prob
    return _from_experts(model, qk_layernorm=True, moe_router_pre_softmax=is_pre, moe_router_dtype="fp32")


def _from_some_dense(model: Any) -> MemoryCheckpoint:
    return _from_experts(model, qk_layernorm=True, moe_layer_freq=[1, 0, 1, 1])


def _from_interleaved(model: Any) -> MemoryCheckpoint:
    """Llama with the two halves of each query and key, and of their norms, woven into pairs."""
    size = model.config.head_dim
    order = torch.arange(size).view(2, -1).t().reshape(-1)
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if "q_proj" in name or "k_proj" in name:
            state[name] = tensor.unflatten(0, (-1, size))[:, order].flatten(0, 1)
        if "q_norm" in name or "k_norm" in name:
            state[name] = tensor[order]
    args = form.saved_args(model.config, swiglu=True, rotary_interleaved=True, qk_layernorm=True)
    return MemoryCheckpoint(args, form.convert_layers(model, _dense, state))


def _from_smollm3(model: Any) -> MemoryCheckpoint:
    marks = [1 - has_rope for has_rope in model.config.no_rope_layers]
    return _from_llama(model, no_rope_freq=marks)


def _from_nemotron(model: Any) -> MemoryCheckpoint:
    args = form.saved_args(
        model.config,
        squared_relu=True,
        normalization="LayerNorm",
        layernorm_zero_centered_gamma=True,
        layernorm_epsilon=model.config.norm_eps,
        rotary_percent=0.5,
    )
    return MemoryCheckpoint(args, form.convert_layers(model, _ungated))


def _ungated(state: State, theirs: str, ours: str, layer: int) -> dict[str, Tensor]:
    names = {f"{theirs}.up_proj": f"{ours}.linear_fc1", f"{theirs}.down_proj": f"{ours}.linear_fc2"}
    return {f"{new}.weight": state[f"{old}.weight"] for old, new in names.items()}


def _from_qwen2_moe(model: Any) -> MemoryCheckpoint:
    return _from_experts(
        model,
        add_qkv_bias=True,
        moe_router_pre_softmax=True,
        moe_shared_expert_intermediate_size=model.config.shared_expert_intermediate_size,
        moe_shared_expert_gate=True,
    )


def _from_deepseek_v3(model: Any) -> MemoryCheckpoint:
    config = model.config
    rope, has_yarn = config.rope_parameters, config.rope_parameters["rope_type"] == "yarn"
    args = form.saved_args(
        config,
        swiglu=True,
        multi_latent_attention=True,
        qk_layernorm=True,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        qk_head_dim=config.qk_nope_head_dim,
        qk_pos_emb_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        rope_type="yarn" if has_yarn else "rope",
        rotary_scaling_factor=rope.get("factor", 1.0),
        original_max_position_embeddings=rope.get("original_max_position_embeddings", 4096),
        mscale=rope.get("mscale", 1.0),
        mscale_all_dim=rope.get("mscale_all_dim", 0.0),
        num_experts=config.n_routed_experts,
        moe_router_topk=config.num_experts_per_tok,
        moe_ffn_hidden_size=config.moe_intermediate_size,
        moe_layer_freq=[int(i >= config.first_k_dense_replace) for i in range(config.num_hidden_layers)],
        moe_router_dtype="fp32",
        moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        moe_router_num_groups=config.n_group,
        moe_router_group_topk=config.topk_group,
        moe_router_topk_scaling_factor=config.routed_scaling_factor,
        moe_shared_expert_intermediate_size=config.moe_intermediate_size * config.n_shared_experts,
    )
    return MemoryCheckpoint(args, form.convert_layers(model, _experts))


def _from_gpt_oss(model: Any) -> MemoryCheckpoint:
    config, rope = model.config, model.config.rope_parameters
    args = form.saved_args(
        config,
        add_bias_linear=True,
        quick_geglu=True,
        glu_linear_offset=1.0,
        activation_func_clamp_value=config.swiglu_limit,
        softmax_type="learnable",
        window_size=(config.sliding_window - 1, 0),
        window_attn_skip_freq=2,
        position_embedding_type="yarn",
        yarn_rotary_scaling_factor=rope["factor"],
        yarn_original_max_position_embeddings=rope["original_max_position_embeddings"],
        yarn_correction_range_round_to_int=rope["truncate"],
        num_experts=config.num_local_experts,
        moe_router_topk=config.num_experts_per_tok,
    )
    return MemoryCheckpoint(args, form.convert_layers(model, _oss_experts))


def _oss_experts(state: State, theirs: str, ours: str, layer: int) -> dict[str, Tensor]:
    """Gate and up are neighbouring columns of [expert, in, out] there, halves of [out, in] here."""
    tensors = form.renamed(state, f"{theirs}.router", f"{ours}.router")
    for expert in range(len(state[f"{theirs}.experts.gate_up_proj"])):
        gate_up, gate_up_bias, down, down_bias = (
            state[f"{theirs}.experts.{name}"][expert]
            for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        )
        prefix = f"{ours}.experts.local_experts.{expert}"
        tensors |= {
            f"{prefix}.linear_fc1.weight": torch.cat((gate_up[:, ::2], gate_up[:, 1::2]), dim=1).t().contiguous(),
            f"{prefix}.linear_fc1.bias": torch.cat((gate_up_bias[::2], gate_up_bias[1::2])),
            f"{prefix}.linear_fc2.weight": down.t().contiguous(),
            f"{prefix}.linear_fc2.bias": down_bias,
        }
    return tensors


def _dense(state: State, theirs: str, ours: str, layer: int) -> dict[str, Tensor]:
    return form.convert_gated_mlp(state, theirs, ours)


def _dense_with_biases(state: State, theirs: str, ours: str, layer: int) -> dict[str, Tensor]:
    bias = torch.cat((state[f"{theirs}.gate_proj.bias"], state[f"{theirs}.up_proj.bias"]))
    tensors = form.convert_gated_mlp(state, theirs, ours)
    return tensors | {f"{ours}.linear_fc1.bias": bias, f"{ours}.linear_fc2.bias": state[f"{theirs}.down_proj.bias"]}


def _experts(state: State, theirs: str, ours: str, layer: int) -> dict[str, Tensor]:
    if f"{theirs}.gate.weight" not in state:
        return form.convert_gated_mlp(state, theirs, ours)
    tensors = {f"{ours}.router.weight": state[f"{theirs}.gate.weight"]}
    if f"{theirs}.gate.e_score_correction_bias" in state:
        tensors[f"{ours}.router.expert_bias"] = state[f"{theirs}.gate.e_score_correction_bias"]
    for name in ("shared_experts", "shared_expert"):
        if f"{theirs}.{name}.up_proj.weight" in state:
            tensors |= form.convert_gated_mlp(state, f"{theirs}.{name}", f"{ours}.shared_experts")
    if f"{theirs}.shared_expert_gate.weight" in state:
        tensors[f"{ours}.shared_experts.gate_weight"] = state[f"{theirs}.shared_expert_gate.weight"]
    for expert, (gate_up, down) in enumerate(
        zip(state[f"{theirs}.experts.gate_up_proj"], state[f"{theirs}.experts.down_proj"], strict=True)
    ):
        tensors[f"{ours}.experts.local_experts.{expert}.linear_fc1.weight"] = gate_up
        tensors[f"{ours}.experts.local_experts.{expert}.linear_fc2.weight"] = down
    return tensors


def _llama(**fields: Any) -> ModelCase:
    return ModelCase("LlamaForCausalLM", "LlamaConfig", DECODER | fields)


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT_OSS = DECODER | {
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 6,
    "swiglu_limit": 1.0,
    "rope_parameters": YARN | {"truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
QWEN2_MOE = DECODER | {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "norm_topk_prob": False,
}
# Megatron has one epsilon for all norms.
LATENT = DEEPSEEK_V3 | {"rms_norm_eps": 1e-6}
TWINS: dict[str, Twin] = {
    "gpt2": Twin(ModelCase("GPT2LMHeadModel", "GPT2Config", GPT2), _from_gpt2),
    "llama": Twin(_llama(), _from_llama),
    "llama-mha-tied": Twin(_llama(num_key_value_heads=4, tie_word_embeddings=True), _from_llama),
    "llama-biases": Twin(_llama(attention_bias=True, mlp_bias=True), _from_llama_with_biases),
    "llama31": Twin(_llama(rope_parameters=LLAMA31), _from_llama31),
    "mistral-window": Twin(
        ModelCase("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 5}), _from_mistral
    ),
    "qwen2": Twin(ModelCase("Qwen2ForCausalLM", "Qwen2Config", DECODER), _from_qwen2),
    "qwen3": Twin(ModelCase("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16}), _from_qwen3),
    "mixtral": Twin(
        ModelCase("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 4}), _from_experts
    ),
    "qwen3-moe": Twin(
        ModelCase("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS | {"norm_topk_prob": True}), _from_qwen3_moe
    ),
    "qwen3-moe-unnormed": Twin(
        ModelCase("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS | {"norm_topk_prob": False}), _from_qwen3_moe
    ),
    "qwen3-moe-some-dense": Twin(
        ModelCase(
            "Qwen3MoeForCausalLM",
            "Qwen3MoeConfig",
            EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1], "num_hidden_layers": 4},
        ),
        _from_some_dense,
    ),
    "llama-interleaved": Twin(
        ModelCase("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16}), _from_interleaved
    ),
    "smollm3-no-rope": Twin(
        ModelCase("SmolLM3ForCausalLM", "SmolLM3Config", DECODER | {"no_rope_layers": [1, 0, 1]}), _from_smollm3
    ),
    "nemotron": Twin(ModelCase("NemotronForCausalLM", "NemotronConfig", NEMOTRON), _from_nemotron),
    "qwen2-moe-shared-gate": Twin(ModelCase("Qwen2MoeForCausalLM", "Qwen2MoeConfig", QWEN2_MOE), _from_qwen2_moe),
    "deepseek-v3": Twin(ModelCase("DeepseekV3ForCausalLM", "DeepseekV3Config", LATENT), _from_deepseek_v3),
    "deepseek-v3-yarn": Twin(
        ModelCase(
            "DeepseekV3ForCausalLM",
            "DeepseekV3Config",
            LATENT | {"q_lora_rank": None, "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}},
        ),
        _from_deepseek_v3,
    ),
    "gpt-oss": Twin(ModelCase("GptOssForCausalLM", "GptOssConfig", GPT_OSS), _from_gpt_oss),
}
