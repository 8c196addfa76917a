"""Layers in forms that only Megatron's options ask for, against the same model said in another way."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kilotron.models.layers.channel_order import order_of_heads, pairs_to_halves
from parity.megatron_form import MemoryCheckpoint
from parity.model_runner import ModelRunner
from unit.kernels.cpu_backends import ISAS

KERNELS = ("cpu", "reference") if ISAS else ("reference",)
HIDDEN, HEADS, HEAD_SIZE, FFN, VOCABULARY = 16, 2, 8, 24, 32
ARGS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "kv_channels": HEAD_SIZE,
    "ffn_hidden_size": FFN,
    "padded_vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "bias_gelu_fusion": False,
}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def tensors_of(*, norm_bias: bool = False, gated: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    tensors = {"embedding.word_embeddings.weight": random(VOCABULARY, HIDDEN, scale=1.0)}
    norms = ["decoder.final_layernorm"]
    for layer in range(2):
        prefix = f"decoder.layers.{layer}"
        norms += [f"{prefix}.input_layernorm", f"{prefix}.pre_mlp_layernorm"]
        tensors |= {
            f"{prefix}.self_attention.linear_qkv.weight": random(3 * HEADS * HEAD_SIZE, HIDDEN),
            f"{prefix}.self_attention.linear_proj.weight": random(HIDDEN, HEADS * HEAD_SIZE),
            f"{prefix}.mlp.linear_fc1.weight": random((1 + gated) * FFN, HIDDEN),
            f"{prefix}.mlp.linear_fc2.weight": random(HIDDEN, FFN),
        }
    for norm in norms:
        tensors[f"{norm}.weight"] = 1 + random(HIDDEN)
        if norm_bias:
            tensors[f"{norm}.bias"] = random(HIDDEN)
    return tensors


def biases_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One for each linear layer, and for no norm."""
    weights = {name: x for name, x in tensors.items() if "linear" in name}
    generator = torch.Generator().manual_seed(4)
    return {
        name.replace("weight", "bias"): torch.randn(len(x), generator=generator) * 0.3 for name, x in weights.items()
    }


def logits_of(args: dict[str, Any], tensors: dict[str, Tensor], kernels: str) -> Tensor:
    runner = ModelRunner.of(MemoryCheckpoint(ARGS | args, tensors), kernels=kernels)
    return runner.run_in_chunks(0, TOKENS, [4, 1])


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_weights_around_zero_are_weights_around_one_less_one(normalization: str, kernels: str) -> None:
    tensors = tensors_of(norm_bias=normalization == "LayerNorm")
    centered = {name: x - 1 if name.endswith("norm.weight") else x for name, x in tensors.items()}
    args = {"normalization": normalization}
    plain = logits_of(args, tensors, kernels)
    assert torch.allclose(
        logits_of(args | {"layernorm_zero_centered_gamma": True}, centered, kernels), plain, atol=1e-5
    )


def test_an_l2_norm_of_heads_is_a_norm_with_weights_of_one(kernels: str) -> None:
    tensors = tensors_of()
    ones = {
        f"decoder.layers.{layer}.self_attention.{name}_layernorm.weight": torch.ones(HEAD_SIZE)
        for layer in range(2)
        for name in "qk"
    }
    normed = logits_of({"qk_layernorm": True}, tensors | ones, kernels)
    assert torch.allclose(logits_of({"qk_l2_norm": True}, tensors, kernels), normed, atol=1e-5)
    assert not torch.allclose(logits_of({}, tensors, kernels), normed, atol=1e-2)


def test_a_softmax_off_by_one_has_sinks_of_zero(kernels: str) -> None:
    tensors = tensors_of()
    sinks = {
        f"decoder.layers.{layer}.self_attention.core_attention.softmax_offset": torch.zeros(HEADS) for layer in range(2)
    }
    learnt = logits_of({"softmax_type": "learnable"}, tensors | sinks, kernels)
    assert torch.equal(logits_of({"softmax_type": "off-by-one"}, tensors, kernels), learnt)
    assert not torch.allclose(logits_of({}, tensors, kernels), learnt, atol=1e-2)


def test_without_positions_order_matters_to_nobody_but_the_mask(kernels: str) -> None:
    tensors = tensors_of()
    logits = logits_of({"position_embedding_type": "none"}, tensors, kernels)
    rotated = logits_of({}, tensors, kernels)
    assert torch.allclose(logits[0], rotated[0], atol=1e-5)
    assert not torch.allclose(logits[-1], rotated[-1], atol=1e-2)


def test_layers_that_do_not_rotate_stand_beside_those_that_do(kernels: str) -> None:
    tensors = tensors_of()
    none = logits_of({"position_embedding_type": "none"}, tensors, kernels)
    assert torch.equal(logits_of({"no_rope_freq": [1, 1]}, tensors, kernels), none)
    assert not torch.equal(logits_of({"no_rope_freq": 2}, tensors, kernels), none)


def test_an_interpolated_model_sees_positions_divided(kernels: str) -> None:
    """Positions divided by a factor are the frequencies divided by it; a lone rotated channel pair shows it."""
    tensors = tensors_of()
    stretched = logits_of({"rotary_seq_len_interpolation_factor": 2, "rotary_percent": 0.25}, tensors, kernels)
    # The first frequency is 1 whatever the base: half of it is no base's, so plain rotation must differ.
    plain = logits_of({"rotary_percent": 0.25}, tensors, kernels)
    assert not torch.allclose(stretched, plain, atol=1e-3)
    assert torch.allclose(stretched[0], plain[0], atol=1e-5)


@pytest.mark.parametrize("activation", ["squared_relu", "swiglu", "quick_geglu"])
@pytest.mark.parametrize("has_biases", [False, True])
def test_experts_that_are_all_alike_are_one_mlp(activation: str, has_biases: bool, kernels: str) -> None:
    tensors = tensors_of(gated=activation != "squared_relu")
    args = {activation: True, "activation_func_clamp_value": 0.5, "add_bias_linear": has_biases}
    if has_biases:
        tensors |= biases_of(tensors)
    experts = {name: x for name, x in tensors.items() if ".mlp." not in name}
    for layer in range(2):
        prefix = f"decoder.layers.{layer}.mlp"
        experts[f"{prefix}.router.weight"] = tensors["embedding.word_embeddings.weight"][:3]
        if has_biases:
            experts[f"{prefix}.router.bias"] = torch.ones(3)
        for name, x in tensors.items():
            if name.startswith(f"{prefix}.linear_fc"):
                part = name.removeprefix(f"{prefix}.")
                experts |= {f"{prefix}.experts.local_experts.{expert}.{part}": x for expert in range(3)}
    mixed = logits_of(args | {"num_experts": 3, "moe_router_topk": 2}, experts, kernels)
    assert torch.allclose(mixed, logits_of(args, tensors, kernels), atol=1e-4)


def test_multi_token_prediction_is_left_unread(kernels: str) -> None:
    tensors = tensors_of()
    extra = {"mtp.layers.0.enorm.weight": torch.ones(HIDDEN)}
    assert torch.equal(logits_of({"mtp_num_layers": 1}, tensors | extra, kernels), logits_of({}, tensors, kernels))


def test_pairs_become_halves_in_every_head() -> None:
    order = pairs_to_halves(6, 4)
    assert order.tolist() == [0, 2, 1, 3, 4, 5]
    assert order_of_heads(order, 2).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
