"""Linear: a weight matrix that the kernels pack once it is loaded, and the empty parameters all layers start with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kilotron.kernels.interface import Activation, KernelBackend, PackedLinear, QuantizedWeight, Weight
from kilotron.models.layers.layer import Layer


def empty_parameter(*shape: int) -> nn.Parameter:
    """A parameter that has a shape and takes no memory; loading replaces it."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Linear(Layer):
    """x @ weight.T + bias, then an activation where there is one, in the layout the kernels chose."""

    def __init__(
        self,
        kernels: KernelBackend,
        input_size: int,
        output_sizes: Sequence[int],
        *,
        bias: bool,
        activation: Activation | None = None,
        can_round: bool = True,
        row_order: Tensor | None = None,
    ) -> None:
        """`output_sizes` are the parts stacked in the weight's rows, such as query, key and value.

        `can_round` says whether a plain weight may be quantized when quantization is asked for; for `row_order` see
        `Layer`.
        """
        super().__init__()
        self.kernels = kernels
        self.output_sizes = tuple(output_sizes)
        self.activation = activation
        self.can_round = can_round
        self.row_order = row_order
        self.weight = empty_parameter(sum(output_sizes), input_size)
        self.bias = empty_parameter(sum(output_sizes)) if bias else None
        self.quantized: QuantizedWeight | None = None
        self.packed: PackedLinear = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, in] -> [T, out], or half of it after a gated activation; `residual` is added."""
        return self.kernels.linear(x, self.packed, residual)

    def pack(self) -> None:
        """Hands the loaded weight to the kernels and forgets it here, so that it is not held twice.

        That is `quantized` where loading has set it, else `weight`.
        """
        weight = self.weight if self.quantized is None else self.quantized
        self.packed = self.kernels.pack_linear(weight, self.bias, self.activation)
        self.quantized = None
        self.weight = empty_parameter(*self.weight.shape)
        if self.bias is not None:
            self.bias = empty_parameter(*self.bias.shape)


class TiedLinear(Layer):
    """A linear layer without parameters: its weight belongs to another module, which keeps it."""

    def __init__(self, kernels: KernelBackend) -> None:
        super().__init__()
        self.kernels = kernels
        self.packed: PackedLinear = None

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]"""
        return self.kernels.linear(x, self.packed)

    def pack(self, weight: Weight) -> None:
        """Hands the other module's loaded weight, or what was made of it, to the kernels."""
        self.packed = self.kernels.pack_linear(weight, None)
