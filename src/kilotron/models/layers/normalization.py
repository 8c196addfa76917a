"""Norm layers: RMS norm and layer norm, chosen once from the config."""

from torch import Tensor

from kilotron.kernels.interface import KernelBackend, NormWeights
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import empty_parameter
from kilotron.models.transformer_config import TransformerConfig


class RMSNorm(Layer):
    """x / rms(x) * weight, or * (1 + weight) when the weights are stored around zero."""

    def __init__(self, kernels: KernelBackend, size: int, epsilon: float, weight_offset: float) -> None:
        super().__init__()
        self.kernels = kernels
        self.epsilon = epsilon
        self.weight_offset = weight_offset
        self.weight = empty_parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis; any shape."""
        return self.kernels.rms_norm(x, self.weight, self.epsilon, self.weight_offset)

    def describe(self) -> NormWeights:
        """Itself as a plain value."""
        return NormWeights("RMSNorm", self.weight, None, self.epsilon, self.weight_offset)


class LayerNorm(Layer):
    """(x - mean) / deviation * weight + bias."""

    def __init__(self, kernels: KernelBackend, size: int, epsilon: float) -> None:
        super().__init__()
        self.kernels = kernels
        self.epsilon = epsilon
        self.weight = empty_parameter(size)
        self.bias = empty_parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis; any shape."""
        return self.kernels.layer_norm(x, self.weight, self.bias, self.epsilon)

    def describe(self) -> NormWeights:
        """Itself as a plain value."""
        return NormWeights("LayerNorm", self.weight, self.bias, self.epsilon, 0.0)


def make_norm(config: TransformerConfig, kernels: KernelBackend, size: int | None = None) -> RMSNorm | LayerNorm:
    """The config's kind of norm over `size` channels, the hidden size unless given."""
    size = size or config.hidden_size
    if config.normalization == "LayerNorm":
        return LayerNorm(kernels, size, config.layernorm_epsilon)
    return RMSNorm(kernels, size, config.layernorm_epsilon, float(config.layernorm_zero_centered_gamma))
