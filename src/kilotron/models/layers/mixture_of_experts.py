"""MixtureOfExperts: a router picks a few experts per token; their outputs are summed with the router's weights."""

from torch import Tensor

from kilotron.kernels.interface import KernelBackend
from kilotron.models.layers.experts import Experts, SharedExperts
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.router import Router
from kilotron.models.transformer_config import TransformerConfig


class MixtureOfExperts(Layer):
    """The chosen experts' sum, and the output of the experts that see every token where there are any."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        if config.num_moe_experts is None or config.moe_ffn_hidden_size is None:
            raise ValueError("a mixture of experts needs num_moe_experts and moe_ffn_hidden_size")
        self.router = Router(config, kernels, config.num_moe_experts)
        self.experts = Experts(config, kernels, config.num_moe_experts, config.moe_ffn_hidden_size)
        self.shared_experts: SharedExperts | None = None
        if config.moe_shared_expert_intermediate_size is not None:
            self.shared_experts = SharedExperts(config, kernels, config.moe_shared_expert_intermediate_size)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden]; `residual` is added."""
        expert_weights, expert_ids = self.router.route(hidden)
        mixed = self.experts(hidden, expert_ids, expert_weights)
        if self.shared_experts is not None:
            mixed = self.shared_experts(hidden, mixed)
        return mixed if residual is None else residual + mixed
