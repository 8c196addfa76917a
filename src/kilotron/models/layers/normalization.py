"""Norm layers: RMS norm and layer norm, chosen once from the config."""

import torch
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
    """(x - mean) / deviation * weight + bias, or * (1 + weight) when the weights are stored around zero."""

    def __init__(self, kernels: KernelBackend, size: int, epsilon: float, weight_offset: float = 0.0) -> None:
        super().__init__()
        self.kernels = kernels
        self.epsilon = epsilon
        self.weight_offset = weight_offset
        self.weight = empty_parameter(size)
        self.bias = empty_parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis; any shape."""
        return self.kernels.layer_norm(x, self._whole_weight(), self.bias, self.epsilon)

    def describe(self) -> NormWeights:
        """Itself as a plain value."""
        return NormWeights("LayerNorm", self._whole_weight(), self.bias, self.epsilon, 0.0)

    def _whole_weight(self) -> Tensor:
        """What multiplies; rounded to the weights' dtype, as in transformers."""
        return self.weight + self.weight_offset if self.weight_offset else self.weight


class L2Norm(Layer):
    """x / rms(x): a norm without weights (Llama 4's of queries and keys)."""

    def __init__(self, kernels: KernelBackend, size: int, epsilon: float) -> None:
        super().__init__()
        self.kernels = kernels
        self.epsilon = epsilon
        self.ones = torch.ones(size, device=kernels.device)

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis; any shape."""
        return self.kernels.rms_norm(x, self.ones.to(x.dtype), self.epsilon)


def make_norm(
    config: TransformerConfig, kernels: KernelBackend, size: int | None = None, epsilon: float | None = None
) -> RMSNorm | LayerNorm:
    """The config's kind of norm over `size` channels, the hidden size unless given."""
    kind = LayerNorm if config.normalization == "LayerNorm" else RMSNorm
    offset = float(config.layernorm_zero_centered_gamma)
    return kind(kernels, size or config.hidden_size, epsilon or config.layernorm_epsilon, offset)
