"""The experts of a layer: those that a router chooses, and those that see every token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kilotron.kernels.interface import ExpertWeights, KernelBackend, PackedExperts, Weight
from kilotron.models.layers.feed_forward import MLP, activation_of
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear, empty_parameter
from kilotron.models.transformer_config import TransformerConfig


class ExpertLinear(Layer):
    """One weight matrix for each expert, [experts, out, in], and perhaps one bias, [experts, out]."""

    def __init__(self, num_experts: int, input_size: int, output_sizes: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.output_sizes = output_sizes
        self.weight = empty_parameter(num_experts, sum(output_sizes), input_size)
        self.bias = empty_parameter(num_experts, sum(output_sizes)) if bias else None
        self.quantized: Sequence[Weight] | None = None

    def take(self) -> tuple[Tensor | Sequence[Weight], Tensor | None]:
        """The loaded weights and biases, which are forgotten here so that they are not held twice.

        Those are `quantized` where loading has set it, else `weight`.
        """
        taken = self.weight if self.quantized is None else self.quantized, self.bias
        self.quantized = None
        self.weight = empty_parameter(*self.weight.shape)
        self.bias = None if self.bias is None else empty_parameter(*self.bias.shape)
        return taken


class Experts(Layer):
    """The experts that a router chooses from."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, num_experts: int, size: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.activation = activation_of(config)
        first_sizes, has_bias = (size, size) if config.gated_linear_unit else (size,), config.add_mlp_bias
        self.linear_fc1 = ExpertLinear(num_experts, config.hidden_size, first_sizes, bias=has_bias)
        self.linear_fc2 = ExpertLinear(num_experts, size, (config.hidden_size,), bias=has_bias)
        self.packed: PackedExperts = None

    def forward(self, hidden: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """[T, hidden], [T, chosen] int64, [T, chosen] float32 -> [T, hidden]"""
        return self.kernels.mix_experts(hidden, self.packed, expert_ids, expert_weights)

    def pack(self) -> None:
        """Hands the loaded weights to the kernels."""
        (gate_up, gate_up_bias), (down, down_bias) = self.linear_fc1.take(), self.linear_fc2.take()
        weights = ExpertWeights(gate_up, down, gate_up_bias, down_bias)
        self.packed = self.kernels.pack_experts(weights, self.activation)


class SharedExperts(MLP):
    """The experts that see every token, as one MLP; gated by a number of the token's own where the config says so."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, size: int) -> None:
        super().__init__(config, kernels, size)
        self.gate: Linear | None = None
        if config.moe_shared_expert_gate:
            self.gate = Linear(kernels, config.hidden_size, (1,), bias=False, can_round=False)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden]; `residual` is added."""
        if self.gate is None:
            return super().forward(hidden, residual)
        output = super().forward(hidden) * sigmoid(self.gate(hidden)).to(hidden.dtype)
        return output if residual is None else residual + output


def sigmoid(x: Tensor) -> Tensor:
    """In float32, by way of float64: the last bits of a vectorized function depend on a value's place in the tensor."""
    return torch.sigmoid(x.double()).float()
