"""Quantized matrices put together and rearranged by rows, which leaves every row's scales with it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kilotron.kernels.interface import QuantizedWeight, Weight


def rearrange_rows(weight: Weight, rearrange: Callable[[Tensor], Tensor]) -> Weight:
    """A matrix with its rows in another order; `rearrange` does it to tensors [rows, anything]."""
    if isinstance(weight, Tensor):
        return rearrange(weight)
    return replace(
        weight, values=rearrange(weight.values), scales=rearrange(weight.scales), zeros=rearrange(weight.zeros)
    )


def concatenate_rows(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """One matrix above the other; None when their bits or groups differ."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if any((weight.bits, weight.scales.shape[1]) != (first.bits, first.scales.shape[1]) for weight in weights):
        return None
    return replace(
        first,
        values=torch.cat([weight.values for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        zeros=torch.cat([weight.zeros for weight in weights]),
    )


def dequantized(weight: Weight) -> Tensor:
    """The matrix as a plain tensor."""
    return weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
