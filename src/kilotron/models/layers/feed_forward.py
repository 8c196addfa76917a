"""MLP: the dense feed-forward part of a layer, gated or not."""

from torch import Tensor

from kilotron.kernels.interface import Activation, KernelBackend
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.transformer_config import TransformerConfig


class MLP(Layer):
    """linear_fc2(activation(linear_fc1(x))); gated: linear_fc2(activation(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        size = config.ffn_hidden_size
        activation = Activation(config.activation, is_gated=config.gated_linear_unit)
        first_sizes = (size, size) if config.gated_linear_unit else (size,)
        has_bias = config.add_mlp_bias
        self.linear_fc1 = Linear(kernels, config.hidden_size, first_sizes, bias=has_bias, activation=activation)
        self.linear_fc2 = Linear(kernels, size, (config.hidden_size,), bias=has_bias)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden]; `residual` is added."""
        return self.linear_fc2(self.linear_fc1(hidden), residual)
