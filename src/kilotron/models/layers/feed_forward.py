"""MLP: the dense feed-forward part of a layer, gated or not."""

from torch import Tensor

from kilotron.kernels.interface import Activation, KernelBackend
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.transformer_config import TransformerConfig


class MLP(Layer):
    """linear_fc2(activation(linear_fc1(x))); gated: linear_fc2(activation(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, size: int | None = None) -> None:
        """`size` is that of the hidden layer, `ffn_hidden_size` unless given."""
        super().__init__()
        size = size or config.ffn_hidden_size
        first_sizes = (size, size) if config.gated_linear_unit else (size,)
        has_bias, activation = config.add_mlp_bias, activation_of(config)
        self.linear_fc1 = Linear(kernels, config.hidden_size, first_sizes, bias=has_bias, activation=activation)
        self.linear_fc2 = Linear(kernels, size, (config.hidden_size,), bias=has_bias)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, hidden] -> [T, hidden]; `residual` is added."""
        return self.linear_fc2(self.linear_fc1(hidden), residual)


def activation_of(config: TransformerConfig) -> Activation:
    """What stands between the two matrices of an MLP."""
    clamp, offset = config.activation_clamp, config.glu_linear_offset
    return Activation(config.activation, config.gated_linear_unit, clamp=clamp, linear_offset=offset)
