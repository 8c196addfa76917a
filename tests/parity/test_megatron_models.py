"""A model in the form of a Megatron checkpoint gives the logits of the same model in transformers."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from parity import megatron_form as form
from parity.megatron_form import MemoryCheckpoint, State
from parity.model_runner import ModelRunner
from parity.tiny_models import DECODER, EXPERTS, GPT2, VOCAB_SIZE, ModelCase, make_random_model
from unit.kernels.cpu_backends import ISAS

TOLERANCE = 1e-4  # of the largest logit, in float32
KERNELS = ("cpu", "reference") if ISAS else ("reference",)


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
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", TWINS)
def test_a_model_in_megatrons_form_gives_the_logits_of_transformers(name: str, kernels: str) -> None:
    twin = TWINS[name]
    model = make_random_model(twin.case, name)
    runner = ModelRunner.of(twin.convert(model), kernels=kernels)
    tokens = torch.randint(3, VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    logits = runner.run_in_chunks(0, tokens, [9, 1, 6])
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"
