"""Rounding: makes quantized weights of plain ones while they are loaded.

8 bits: symmetric, one scale for each output channel. 4 bits: a scale and a zero for each group of columns.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, device, dtype

from kilotron.kernels.interface import QuantizedWeight, Weight
from kilotron.models.quantization.row_chunks import for_row_chunks
from kilotron.models.quantization.stored_matrix import KERNEL_GROUP_SIZES

# Values worked on at once: float32 copies of so many stay in a core's cache (1.5 times the speed of 4 times as many).
CHUNK_VALUES = 1 << 18
MOST_8_BITS = 127
MOST_4_BITS = 15
# Parts of a group's range that are tried, beside all of it, as the range of its 16 values; what lies outside is
# clipped. On normally distributed weights 0.9, and the scale fitted afterwards, lower the error by 2.3 percent in
# groups of 32, by 2.9 in groups of 64 and by 4.6 in groups of 128; seven parts would give 1 percent more in three
# times the time.
CLIPPED_RANGES = (0.9,)


@dataclass(frozen=True, slots=True)
class Rounding:
    """How plain weights are to be quantized."""

    bits: int
    """8 or 4"""
    group_size: int | None
    """Columns that share a scale: one of `KERNEL_GROUP_SIZES` for 4 bits; None is all of them."""

    def quantize(self, weight: Tensor, dtype: dtype, device: device) -> Weight:
        """[out, in] of any float type -> the nearest quantized weight on `device`.

        Columns that the group size does not divide get the next smaller one that does; without any the weight comes
        back in `dtype`. NaN and Inf spoil their whole group.
        """
        if self.bits == 4 and self.fitting_group_size(weight.shape[1]) is None:
            return weight.to(device, dtype).contiguous()
        num_rows, num_columns = weight.shape
        group_size = self.fitting_group_size(num_columns) or num_columns
        groups = (num_rows, num_columns // group_size)
        values = torch.empty(weight.shape, dtype=torch.int8, device=device)
        scales = torch.empty(groups, dtype=torch.float32, device=device)
        zeros = torch.zeros(groups, dtype=torch.int8, device=device)

        def round_rows(rows: slice) -> None:
            chunk = weight[rows].to(device, torch.float32).reshape(-1, group_size)
            if self.bits == 8:
                chunk_values, chunk_scales = round_to_8_bits(chunk)
            else:
                chunk_values, chunk_scales, chunk_zeros = round_to_4_bits(chunk)
                zeros[rows] = chunk_zeros.view(-1, groups[1])
            values[rows] = chunk_values.view(-1, num_columns)
            scales[rows] = chunk_scales.view(-1, groups[1])

        for_row_chunks(round_rows, (num_rows, num_columns), CHUNK_VALUES)
        return QuantizedWeight(values=values, scales=scales, zeros=zeros, bits=self.bits, dtype=dtype)

    def fitting_group_size(self, num_columns: int) -> int | None:
        """The largest group size, at most the one asked for, that divides the columns."""
        wanted = self.group_size or 0
        return next((size for size in KERNEL_GROUP_SIZES if size <= wanted and num_columns % size == 0), None)


def round_to_8_bits(groups: Tensor) -> tuple[Tensor, Tensor]:
    """[n, columns] float32 -> values in [-127, 127] [n, columns] float32, scales [n] float32."""
    scales = _without_zero(groups.abs().amax(dim=1) / MOST_8_BITS)
    return (groups / scales[:, None]).round_().clamp_(-MOST_8_BITS, MOST_8_BITS), scales


def round_to_4_bits(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, columns] float32 -> values in [0, 15] [n, columns], scales [n] and zeros in [0, 15] [n], all float32.

    The range always holds 0, so that a weight of 0 stays 0.
    """
    low, high = groups.amin(dim=1).clamp_(max=0), groups.amax(dim=1).clamp_(min=0)
    scales, zeros = _cover(low, high)
    error = _fit(groups, scales, zeros).error
    for part in CLIPPED_RANGES:
        other_scales, other_zeros = _cover(low * part, high * part)
        other_error = _fit(groups, other_scales, other_zeros).error
        is_better = other_error < error
        scales, zeros = torch.where(is_better, other_scales, scales), torch.where(is_better, other_zeros, zeros)
        error = torch.minimum(other_error, error)
    best = _fit(groups, scales, zeros)
    return best.steps + zeros[:, None], best.scales, zeros


class _Fit(NamedTuple):
    """What a grid of 16 values makes of n groups."""

    steps: Tensor
    """[n, columns]; how many scales each rounded weight is away from 0."""
    scales: Tensor
    """[n]; those with the least square error for these steps."""
    error: Tensor
    """[n]; the square error with them, less the weights' own square (<= 0)."""


def _cover(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zeros of the grids that reach from low to high."""
    scales = _without_zero(high / MOST_4_BITS - low / MOST_4_BITS)
    return scales, (-low / scales).round_()


def _fit(groups: Tensor, scales: Tensor, zeros: Tensor) -> _Fit:
    """Rounds to a grid. In plain operations: torch's fused ones (addcmul, aminmax) take longer than their parts."""
    wanted = groups / scales[:, None]  # in scales, so that no weight is too large or small to be squared
    steps = (wanted + zeros[:, None]).round_().clamp_(0, MOST_4_BITS).sub_(zeros[:, None])
    product, square = (wanted * steps).sum(dim=1), torch.linalg.vector_norm(steps, dim=1).square_()
    change = torch.where(square == 0, 1.0, product / square)
    return _Fit(steps, scales * change, -product * change * scales * scales)


def _without_zero(scales: Tensor) -> Tensor:
    """1 for the scale of a group of zeros: any would do but 0. NaN stays."""
    return torch.where(scales == 0, 1.0, scales)
