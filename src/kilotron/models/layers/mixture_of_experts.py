"""MixtureOfExperts: a router picks a few experts per token; their outputs are summed with the router's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kilotron.kernels.interface import Activation, ExpertWeights, KernelBackend, PackedExperts, Weight
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear, empty_parameter
from kilotron.models.transformer_config import TransformerConfig


class ExpertLinear(Layer):
    """One weight matrix for each expert: [experts, out, in]."""

    def __init__(self, num_experts: int, input_size: int, output_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.output_sizes = output_sizes
        self.weight = empty_parameter(num_experts, sum(output_sizes), input_size)
        self.quantized: Sequence[Weight] | None = None


class Experts(Layer):
    """The experts of a layer."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, num_experts: int, size: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.activation = Activation(config.activation, is_gated=True)
        self.linear_fc1 = ExpertLinear(num_experts, config.hidden_size, (size, size))
        self.linear_fc2 = ExpertLinear(num_experts, size, (config.hidden_size,))
        self.packed: PackedExperts = None

    def forward(self, hidden: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """[T, hidden], [T, chosen] int64, [T, chosen] float32 -> [T, hidden]"""
        return self.kernels.mix_experts(hidden, self.packed, expert_ids, expert_weights)

    def pack(self) -> None:
        """Hands the loaded weights to the kernels and forgets them here, so that they are not held twice.

        Those are `quantized` where loading has set it, else `weight`.
        """
        linears = (self.linear_fc1, self.linear_fc2)
        gate_up, down = (linear.weight if linear.quantized is None else linear.quantized for linear in linears)
        self.packed = self.kernels.pack_experts(ExpertWeights(gate_up, down), self.activation)
        for linear in linears:
            linear.quantized = None
            linear.weight = empty_parameter(*linear.weight.shape)


class MixtureOfExperts(Layer):
    """Softmax routing to the `moe_router_topk` most likely experts."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        if config.num_moe_experts is None or config.moe_ffn_hidden_size is None:
            raise ValueError("a mixture of experts needs num_moe_experts and moe_ffn_hidden_size")
        self.num_chosen = config.moe_router_topk
        self.norm_topk_prob = config.norm_topk_prob
        self.router = Linear(kernels, config.hidden_size, (config.num_moe_experts,), bias=False, can_round=False)
        self.experts = Experts(config, kernels, config.num_moe_experts, config.moe_ffn_hidden_size)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden]; `residual` is added."""
        probabilities = torch.softmax(self.router(hidden).float(), dim=-1)
        expert_weights, expert_ids = probabilities.topk(self.num_chosen, dim=-1)
        if self.norm_topk_prob:
            expert_weights = expert_weights / expert_weights.sum(dim=-1, keepdim=True)
        mixed = self.experts(hidden, expert_ids, expert_weights)
        return mixed if residual is None else residual + mixed
