"""8-bit float matrices: `weight` beside `weight_scale`, or `weight_scale_inv`, which multiplies just the same.

One scale for all, for each row, or for each block. They have no kernels, so they are dequantized.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, dtype

from kilotron.models.config_fields import ConfigFields
from kilotron.models.quantization.stored_matrix import (
    FLOAT_DTYPES,
    DecodedWeight,
    PartSpec,
    Shape,
    StoredTensors,
    dequantize_blocks,
)

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
LOSS = "8-bit floats, for which there are no kernels"

Block = tuple[int, int]


class Fp8Format:
    """`MatrixFormat` of quant_method "fp8"."""

    suffixes = frozenset(("weight_scale", "weight_scale_inv"))
    unread_suffixes = frozenset(("input_scale", "output_scale", "k_scale", "v_scale"))
    uses_activations = True

    def __init__(self, fields: ConfigFields) -> None:
        """Raises CheckpointError when the settings are of a kind that is not read."""
        self._block = read_block(fields, "weight_block_size")
        place = "per channel or tensor" if self._block is None else f"in blocks of {self._block[0]}x{self._block[1]}"
        self.description = f"fp8, {place}"

    def parts_of(self, module: str, shape: tuple[int, int], stored: StoredTensors) -> dict[str, PartSpec] | None:
        """The weight and whichever scale there is."""
        names = ("weight_scale_inv", "weight_scale")
        scale = next((name for name in names if f"{module}.{name}" in stored), names[self._block is None])
        if not is_fp8(module, scale, stored):
            return None
        return {"weight": PartSpec(FP8_DTYPES, (shape,)), scale: scale_spec(shape, self._block)}

    def decode(self, module: str, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: dtype) -> DecodedWeight:
        """Always plain."""
        scale = next(part for name, part in parts.items() if name != "weight")
        return DecodedWeight(dequantize_fp8(parts["weight"], scale, self._block, dtype), LOSS)


def read_block(fields: ConfigFields, name: str) -> Block | None:
    """Rows and columns of a block; None when the field is absent."""
    sizes = fields.integers(name)
    if not sizes:
        return None
    if len(sizes) != 2 or min(sizes) < 1:
        raise fields.wrong(name, "a list of two counts")
    return sizes[0], sizes[1]


def is_fp8(module: str, scale: str, stored: StoredTensors) -> bool:
    """Whether a module's weight is stored as 8-bit floats, or gone while its scale is there."""
    info = stored.get(f"{module}.weight")
    return f"{module}.{scale}" in stored if info is None else info.dtype.startswith("F8_")


def scale_spec(shape: tuple[int, int], block: Block | None) -> PartSpec:
    """One scale for each block, or for each row, or one for all."""
    rows, columns = shape
    if block is not None:
        return PartSpec(FLOAT_DTYPES, ((-(-rows // block[0]), -(-columns // block[1])),))
    shapes: tuple[Shape, ...] = ((rows, 1), (rows,), (1,), ())
    return PartSpec(FLOAT_DTYPES, shapes)


def dequantize_fp8(weight: Tensor, scale: Tensor, block: Block | None, dtype: dtype) -> Tensor:
    """[out, in] in `dtype`"""
    rows, columns = (torch.arange(size, device=weight.device) for size in weight.shape)
    if block is not None:
        return dequantize_blocks(weight, scale.float(), None, rows // block[0], columns // block[1], dtype)
    table = scale.float().reshape(-1, 1)
    row_groups = rows if table.shape[0] == weight.shape[0] else torch.zeros_like(rows)
    return dequantize_blocks(weight, table, None, row_groups, torch.zeros_like(columns), dtype)
