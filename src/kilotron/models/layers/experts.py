"""The experts of a layer: as one operation of the kernels where they have the form for it, else one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kilotron.kernels.interface import Activation, ExpertWeights, KernelBackend, PackedExperts, Weight
from kilotron.models.layers.feed_forward import MLP, activation_of
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
    """Gated experts without biases: one operation for all."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, num_experts: int, size: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.activation = config.activation
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
        stacks = [linear.weight if linear.quantized is None else linear.quantized for linear in linears]
        self.packed = self.kernels.pack_experts(ExpertWeights(*stacks), self.activation)
        for linear in linears:
            linear.quantized = None
            linear.weight = empty_parameter(*linear.weight.shape)


class LocalExperts(Layer):
    """Experts of any other form: an MLP each, one after the other."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, num_experts: int, size: int) -> None:
        super().__init__()
        self.local_experts = nn.ModuleList(MLP(config, kernels, size) for _ in range(num_experts))

    def forward(self, hidden: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """[T, hidden], [T, chosen] int64, [T, chosen] float32 -> [T, hidden]; summed in ascending order of id."""
        result = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        for expert in expert_ids.unique().tolist():
            tokens, choice = (expert_ids == expert).nonzero(as_tuple=True)
            output = self.local_experts[expert](hidden.index_select(0, tokens))
            result.index_add_(0, tokens, output.float() * expert_weights[tokens, choice].unsqueeze(-1))
        return result.to(hidden.dtype)


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
        output = super().forward(hidden) * self.kernels.activate(
            self.gate(hidden), Activation("sigmoid", is_gated=False)
        )
        return output if residual is None else residual + output


def make_experts(
    config: TransformerConfig, kernels: KernelBackend, num_experts: int, size: int
) -> Experts | LocalExperts:
    """The form that the kernels take at once, if that is what the config describes."""
    can_mix = config.gated_linear_unit and activation_of(config).can_fuse and not config.add_mlp_bias
    return (Experts if can_mix else LocalExperts)(config, kernels, num_experts, size)
