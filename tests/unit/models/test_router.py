"""The router chooses and weighs experts as Megatron's `topk_routing_with_score_function` does, written out here."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.layers.router import Router
from kilotron.models.transformer_config import TransformerConfig

NUM_EXPERTS, HIDDEN, TOKENS = 8, 16, 40
SIZES: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": 8,
    "num_attention_heads": 1,
    "num_query_groups": 1,
    "kv_channels": 8,
    "vocab_size": 8,
    "max_position_embeddings": 8,
    "num_moe_experts": NUM_EXPERTS,
    "moe_ffn_hidden_size": 4,
    "moe_router_topk": 4,
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def make_router(**fields: Any) -> Router:
    router = Router(TransformerConfig(**SIZES | fields), ReferenceBackend(), NUM_EXPERTS)
    for name, parameter in list(router.named_parameters()):
        setattr(router, name, nn.Parameter(random(*parameter.shape), requires_grad=False))
    return router


def route(router: Router) -> Tensor:
    """[tokens, experts]: each expert's weight for each token, 0 where it was not chosen."""
    hidden = random(TOKENS, HIDDEN)
    router.pack()
    weights, ids = router.route(hidden)
    return torch.zeros(TOKENS, NUM_EXPERTS).scatter(1, ids, weights)


def best_groups_only(values: Tensor, num_groups: int, group_topk: int, per_group: int) -> Tensor:
    grouped = values.view(TOKENS, num_groups, -1)
    scores = grouped.topk(per_group, dim=-1).values.sum(-1)
    keeps = torch.zeros_like(scores).scatter(1, scores.topk(group_topk, dim=-1).indices, 1.0)
    return values.masked_fill(~keeps.bool().repeat_interleave(grouped.shape[-1], dim=1), -torch.inf)


GROUPS: dict[str, Any] = {
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "moe_router_scores_per_group": 2,
}


@pytest.mark.parametrize("groups", [{}, GROUPS])
def test_a_softmax_over_the_chosen_experts(groups: dict[str, Any]) -> None:
    router = make_router(**groups, moe_router_groups_by_logits=True, moe_router_topk_scaling_factor=1.5)
    logits = random(TOKENS, HIDDEN) @ router.weight.T
    chosen_from = best_groups_only(logits, 4, 2, 2) if groups else logits
    top, ids = chosen_from.topk(4, dim=-1)
    expected = torch.zeros(TOKENS, NUM_EXPERTS).scatter(1, ids, torch.softmax(top, dim=-1) * 1.5)
    assert torch.allclose(route(router), expected, atol=1e-6)


@pytest.mark.parametrize("groups", [{}, GROUPS])
def test_a_softmax_over_all_experts(groups: dict[str, Any]) -> None:
    router = make_router(**groups, norm_topk_prob=False)
    scores = torch.softmax(random(TOKENS, HIDDEN) @ router.weight.T, dim=-1)
    top, ids = (best_groups_only(scores, 4, 2, 2) if groups else scores).topk(4, dim=-1)
    assert torch.allclose(route(router), torch.zeros(TOKENS, NUM_EXPERTS).scatter(1, ids, top), atol=1e-6)


@pytest.mark.parametrize("groups", [{}, GROUPS])
def test_a_bias_chooses_experts_and_does_not_weigh_them(groups: dict[str, Any]) -> None:
    router = make_router(
        **groups,
        moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        moe_router_topk_scaling_factor=2.5,
    )
    assert router.expert_bias is not None
    scores = torch.sigmoid(random(TOKENS, HIDDEN) @ router.weight.T)
    biased = scores + router.expert_bias
    ids = (best_groups_only(biased, 4, 2, 2) if groups else biased).topk(4, dim=-1).indices
    chosen = scores.gather(1, ids)
    chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * 2.5
    assert torch.allclose(route(router), torch.zeros(TOKENS, NUM_EXPERTS).scatter(1, ids, chosen), atol=1e-6)


def test_one_experts_sigmoid_is_its_weight() -> None:
    router = make_router(moe_router_score_function="sigmoid", moe_router_topk=1, norm_topk_prob=False)
    scores = torch.sigmoid(random(TOKENS, HIDDEN) @ router.weight.T)
    top, ids = scores.topk(1, dim=-1)
    assert torch.allclose(route(router), torch.zeros(TOKENS, NUM_EXPERTS).scatter(1, ids, top), atol=1e-6)


def test_a_bias_of_the_router_counts_before_the_scores() -> None:
    router = make_router(add_router_bias=True)
    assert router.bias is not None
    logits = random(TOKENS, HIDDEN) @ router.weight.T + router.bias
    top, ids = logits.topk(4, dim=-1)
    expected = torch.zeros(TOKENS, NUM_EXPERTS).scatter(1, ids, torch.softmax(top, dim=-1))
    assert torch.allclose(route(router), expected, atol=1e-6)


def test_a_float32_router_keeps_what_half_precision_loses() -> None:
    router = make_router(moe_router_float32=True, moe_router_enable_expert_bias=True)
    assert set(router.float32_parameters) == {"weight", "bias", "expert_bias"}
    hidden = random(TOKENS, HIDDEN).to(torch.bfloat16)
    logits = hidden.float() @ router.weight.T
    router.pack()
    assert torch.allclose(router(hidden.float()), logits, atol=1e-6)
    assert router.route(hidden)[0].dtype == torch.float32


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
def test_a_token_is_routed_alike_alone_and_in_a_crowd(score_function: str) -> None:
    router = make_router(moe_router_score_function=score_function, moe_router_enable_expert_bias=True, **GROUPS)
    router.pack()
    hidden = random(TOKENS, HIDDEN)
    weights, ids = router.route(hidden)
    for token in range(TOKENS):
        alone_weights, alone_ids = router.route(hidden[token : token + 1])
        assert torch.equal(alone_weights[0], weights[token])
        assert torch.equal(alone_ids[0], ids[token])
