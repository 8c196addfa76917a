"""What checkpoint formats of quantized matrices have in common: which tensors they need, and the grid they spell.

A format says what is stored and decodes it. Whether the result fits the kernels' `QuantizedWeight` is decided here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, device, dtype

from kilotron.errors import BrokenCheckpointError
from kilotron.kernels.interface import QuantizedWeight, Weight
from kilotron.models.quantization.row_chunks import for_row_chunks

FLOAT_DTYPES = ("F32", "BF16", "F16")
# Group sizes that kernels have for 4 bits. Larger ones are told as several groups with one scale.
KERNEL_GROUP_SIZES = (128, 64, 32)
GROUP_MULTIPLE = 32
CHUNK_VALUES = 1 << 18

Shape = tuple[int, ...]


class TensorInfo(Protocol):
    """What is known of a stored tensor before it is read."""

    @property
    def file(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


StoredTensors = Mapping[str, TensorInfo]


class PartSpec(NamedTuple):
    """What a stored tensor must be: of one of these dtypes and one of these shapes."""

    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]


class DecodedWeight(NamedTuple):
    """A matrix as the kernels take it."""

    weight: Weight
    loss: str | None = None
    """Why it is not quantized any more, though it was stored so."""


class MatrixFormat(Protocol):
    """One way of storing quantized matrices [out, in], of which a checkpoint has many."""

    @property
    def description(self) -> str:
        """The method, bits and groups, for people."""
        ...

    @property
    def uses_activations(self) -> bool:
        """Whether the checkpoint also asks for quantized activations, which are left as they are."""
        ...

    @property
    def suffixes(self) -> frozenset[str]:
        """Last parts of the names of tensors that a quantized matrix has besides "weight", such as "qweight"."""
        ...

    @property
    def unread_suffixes(self) -> frozenset[str]:
        """Last parts of the names of tensors about activations and caches, for which there is no use."""
        ...

    def parts_of(self, module: str, shape: tuple[int, int], stored: StoredTensors) -> dict[str, PartSpec] | None:
        """The tensors that the weight [out, in] of a module needs, by suffix; None when it is stored plainly."""
        ...

    def decode(self, module: str, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: dtype) -> DecodedWeight:
        """Raises BrokenCheckpointError, with the tensor's name, where a value is impossible."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGrid:
    """A matrix of whole numbers: weight[i, k] = (values[i, k] - zeros[i, g]) * scales[i, g], g = column_groups[k]."""

    values: Tensor
    """[out, in] uint8, within [0, 2 ** bits)."""
    scales: Tensor
    """[out, groups] float32"""
    zeros: Tensor
    """[out, groups] int16, counted as values are."""
    bits: int
    """4 or 8"""
    group_size: int
    """Neighbouring columns that share a scale; the last ones may be fewer."""
    column_groups: Tensor | None = None
    """[in] int64; None where neighbouring columns share groups in order."""

    def to_weight(self, dtype: dtype) -> DecodedWeight:
        """As a QuantizedWeight if it fits one, else as a plain tensor in `dtype`."""
        loss = self._misfit()
        if loss is None:
            return DecodedWeight(self._quantized(dtype))
        columns = self.column_groups
        if columns is None:
            columns = torch.arange(self.values.shape[1], device=self.values.device) // self.group_size
        rows = torch.arange(self.values.shape[0], device=self.values.device)
        return DecodedWeight(dequantize_blocks(self.values, self.scales, self.zeros, rows, columns, dtype), loss)

    def _misfit(self) -> str | None:
        """Why no QuantizedWeight can hold it."""
        num_columns, size = self.values.shape[1], self._group_size
        if self.column_groups is not None:
            return "columns in order of activation (desc_act), which kernels do not gather"
        if self.bits == 8 and bool((self.zeros != 128).any()):
            return "8 bits with zero points, which kernels do not have"
        if self.bits == 4 and bool(((self.zeros < 0) | (self.zeros > 16)).any()):
            return "zero points outside of the range of 4 bits"
        is_one_group = size == num_columns and self.bits == 8
        if not is_one_group and (num_columns % size or size % GROUP_MULTIPLE):
            return f"groups of {size} in {num_columns} columns; kernels need multiples of 32 that divide the columns"
        return None

    @property
    def _group_size(self) -> int:
        return min(self.group_size, self.values.shape[1])

    def _quantized(self, dtype: dtype) -> QuantizedWeight:
        scales, zeros = self.scales, self.zeros
        if self.bits == 8:
            # Flipping the top bit of a byte takes 128 from it.
            values, zeros = (self.values ^ 128).view(torch.int8), torch.zeros_like(zeros)
        else:
            values = self.values.view(torch.int8)
            size = next(size for size in KERNEL_GROUP_SIZES if self._group_size % size == 0)
            repeats = self._group_size // size
            scales, zeros = scales.repeat_interleave(repeats, dim=1), zeros.repeat_interleave(repeats, dim=1)
        return QuantizedWeight(
            values=values.contiguous(),
            scales=scales.contiguous(),
            zeros=zeros.to(torch.int8).contiguous(),
            bits=self.bits,
            dtype=dtype,
        )


def read_column_groups(module: str, suffix: str, parts: Mapping[str, Tensor], num_groups: int) -> Tensor | None:
    """The group of each column, [in] int64, where it is stored.

    Raises:
        BrokenCheckpointError: it names groups that do not exist.
    """
    if suffix not in parts:
        return None
    groups = parts[suffix].long()
    low, high = (int(extreme) for extreme in groups.aminmax())
    if low < 0 or high >= num_groups:
        raise BrokenCheckpointError(
            f"tensor '{module}.{suffix}' has values from {low} to {high}, expected groups from 0 to {num_groups - 1}"
        )
    return groups


def dequantize_blocks(
    values: Tensor, scales: Tensor, zeros: Tensor | None, row_groups: Tensor, column_groups: Tensor, dtype: dtype
) -> Tensor:
    """(values[i, k] - zeros[r, c]) * scales[r, c] with r = row_groups[i], c = column_groups[k]: [out, in] in `dtype`.

    In float32, rounded once; some rows at a time, so that no wide copy of the whole is made.
    """
    result = torch.empty(values.shape, dtype=dtype, device=values.device)

    def dequantize_rows(rows: slice) -> None:
        wide = values[rows].float()
        if zeros is not None:
            wide -= zeros[row_groups[rows]][:, column_groups]
        result[rows] = wide * scales[row_groups[rows]][:, column_groups]

    for_row_chunks(dequantize_rows, values.shape, CHUNK_VALUES)
    return result


def to_device(parts: Mapping[str, Tensor], target: device) -> dict[str, Tensor]:
    """The same tensors on another device."""
    return {name: part.to(target) for name, part in parts.items()}
