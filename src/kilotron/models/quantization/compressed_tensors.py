"""The matrices of compressed-tensors checkpoints, as llm-compressor writes them.

Whole numbers are stored signed, [out, in] int8, or packed sideways with the least one counted as 0 (`weight_packed`);
zero points of packed ones are packed downwards. 8-bit floats are stored as they are.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, dtype

from kilotron.errors import BrokenCheckpointError, CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.quantization.fp8 import LOSS, Block, dequantize_fp8, is_fp8, read_block, scale_spec
from kilotron.models.quantization.group_scheme import is_packed
from kilotron.models.quantization.packed_integers import num_words, unpack
from kilotron.models.quantization.stored_matrix import (
    FLOAT_DTYPES,
    DecodedWeight,
    PartSpec,
    Shape,
    StoredGrid,
    StoredTensors,
    read_column_groups,
)

PACKED = "pack-quantized"
LAYOUTS = (PACKED, "int-quantized", "float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")
PATTERN_MARK = "re:"
EVERY_LINEAR = "Linear"


class WeightScheme(NamedTuple):
    """How the weights of some modules are stored."""

    layout: str
    bits: int
    is_float: bool
    is_symmetric: bool
    strategy: str
    group_size: int
    block: Block | None
    has_column_order: bool

    def columns_of(self, num_columns: int) -> int:
        """The group size in a matrix of so many columns."""
        return self.group_size if self.strategy == "group" else num_columns

    def scale_shapes(self, shape: tuple[int, int]) -> tuple[Shape, ...]:
        """What the scales of whole numbers may look like."""
        rows, columns = shape
        if self.strategy == "tensor":
            return (1,), (), (1, 1)
        if self.strategy == "channel":
            return (rows, 1), (rows,)
        return ((rows, -(-columns // self.group_size)),)

    def describe(self) -> str:
        """For people."""
        kind = "8-bit floats" if self.is_float else f"{self.bits} bits"
        groups = {"group": f"in groups of {self.group_size}", "block": f"in blocks of {self.block}"}
        return f"{kind} {groups.get(self.strategy, f'per {self.strategy}')}"


class CompressedTensorsFormat:
    """`MatrixFormat` of compressed-tensors."""

    suffixes = frozenset("weight_packed weight_scale weight_zero_point weight_shape weight_g_idx".split())
    unread_suffixes = frozenset(
        "input_scale input_zero_point output_scale output_zero_point q_scale k_scale v_scale".split()
    )

    def __init__(self, fields: ConfigFields) -> None:
        """Raises CheckpointError when the settings are of a kind that is not read."""
        sparsity = fields.section("sparsity_config").text("format", "dense")
        if sparsity != "dense":
            raise CheckpointError(f"{fields.source}: sparsity_config has format {sparsity!r}; only 'dense' is read")
        self._targets = dict(_read_targets(fields))
        sections = [fields.section("config_groups").section(name) for name in fields.section("config_groups").values]
        self.uses_activations = any("input_activations" in section for section in sections)
        schemes = dict.fromkeys(scheme.describe() for scheme in self._targets.values())
        self.description = f"compressed-tensors, {', '.join(schemes) or 'nothing quantized'}"

    def parts_of(self, module: str, shape: tuple[int, int], stored: StoredTensors) -> dict[str, PartSpec] | None:
        """The values, packed or not, their scales, and zero points where zero is not in the middle."""
        scheme = self._scheme_of(module)
        if scheme is None:
            return None
        if scheme.is_float:
            if not is_fp8(module, "weight_scale", stored):
                return None
            return {"weight": PartSpec(("F8_E4M3",), (shape,)), "weight_scale": scale_spec(shape, scheme.block)}
        if not _is_stored_as(scheme, module, stored):
            return None
        scale_shapes = scheme.scale_shapes(shape)
        parts = {"weight_scale": PartSpec(FLOAT_DTYPES, scale_shapes)}
        if scheme.layout == PACKED:
            parts["weight_packed"] = PartSpec(("I32",), ((shape[0], num_words(shape[1], scheme.bits)),))
        else:
            parts["weight"] = PartSpec(("I8",), (shape,))
        if not scheme.is_symmetric:
            zeros = stored.get(f"{module}.weight_zero_point")
            is_packed_too = scheme.layout == PACKED and (zeros is None or zeros.dtype == "I32")
            packed_shape = (num_words(shape[0], scheme.bits), scale_shapes[0][-1] if scale_shapes[0] else 1)
            parts["weight_zero_point"] = (
                PartSpec(("I32",), (packed_shape,)) if is_packed_too else PartSpec(("I8",), scale_shapes)
            )
        if scheme.has_column_order:
            parts["weight_g_idx"] = PartSpec(("I32", "I64"), ((shape[1],),))
        return parts

    def decode(self, module: str, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: dtype) -> DecodedWeight:
        """Whole numbers quantized where kernels can have them, floats plain."""
        scheme = self._scheme_of(module)
        if scheme is None:
            raise ValueError(f"{module} has no scheme")
        if scheme.is_float:
            return DecodedWeight(dequantize_fp8(parts["weight"], parts["weight_scale"], scheme.block, dtype), LOSS)
        rows, columns = shape
        middle = 1 << (scheme.bits - 1)
        if scheme.layout == PACKED:
            values = unpack(parts["weight_packed"], scheme.bits, columns)
        else:
            values = parts["weight"].view(torch.uint8) + middle  # wraps as bytes do: -1 is 255, and middle - 1 then
            if scheme.bits == 4 and bool((values > 15).any()):
                raise BrokenCheckpointError(
                    f"tensor '{module}.weight' has values outside of -8 to 7, the range of 4 bits"
                )
        scales = parts["weight_scale"].float().reshape(-1, 1)
        if scheme.strategy == "group":
            scales = scales.view(rows, -1)
        zeros = parts.get("weight_zero_point")
        if zeros is None:
            zeros = torch.full(scales.shape, middle, dtype=torch.int16, device=scales.device)
        elif zeros.dtype == torch.int32:
            zeros = unpack(zeros.t(), scheme.bits, rows).t().to(torch.int16)
        else:
            zeros = zeros.reshape(scales.shape).to(torch.int16) + middle
        grid = StoredGrid(
            values=values,
            scales=scales.expand(rows, -1),
            zeros=zeros.expand(rows, -1),
            bits=scheme.bits,
            group_size=scheme.columns_of(columns),
            column_groups=read_column_groups(module, "weight_g_idx", parts, scales.shape[1]),
        )
        return grid.to_weight(dtype)

    def _scheme_of(self, module: str) -> WeightScheme | None:
        """That of the module's own name, else of a pattern of names, else of all linear layers."""
        if module in self._targets:
            return self._targets[module]
        for target, scheme in self._targets.items():
            if target.startswith(PATTERN_MARK) and re.match(target.removeprefix(PATTERN_MARK), module):
                return scheme
        return self._targets.get(EVERY_LINEAR)


def _is_stored_as(scheme: WeightScheme, module: str, stored: StoredTensors) -> bool:
    if scheme.layout == PACKED:
        return is_packed(module, frozenset(("weight_packed", "weight_scale")), stored)
    weight = stored.get(f"{module}.weight")
    return f"{module}.weight_scale" in stored if weight is None else weight.dtype == "I8"


def _read_targets(fields: ConfigFields) -> Iterator[tuple[str, WeightScheme]]:
    """Each target, a name, a pattern or a class of modules, and how its weights are stored."""
    groups = fields.section("config_groups")
    for name in groups.values:
        group = groups.section(name)
        if "weights" not in group:
            continue
        layout_field = group if "format" in group else fields
        layout = layout_field.text("format")
        if layout not in LAYOUTS:
            raise layout_field.wrong("format", f"one of {', '.join(LAYOUTS)}")
        scheme = _read_scheme(group.section("weights"), layout)
        for target in group.texts("targets"):
            if target.startswith(PATTERN_MARK):
                _check_pattern(group, target.removeprefix(PATTERN_MARK))
            yield target, scheme


def _read_scheme(weights: ConfigFields, layout: str) -> WeightScheme:
    group_size = weights.integer("group_size", -1)
    strategy = weights.text(
        "strategy", "group" if group_size > 0 else "channel" if "group_size" in weights else "tensor"
    )
    is_float = weights.text("type", "int") == "float"
    bits = weights.integer("num_bits", 8)
    if strategy not in STRATEGIES[: 4 if is_float else 3]:
        raise weights.wrong("strategy", f"one of {', '.join(STRATEGIES[: 4 if is_float else 3])}")
    if bits not in ((8,) if is_float else (4, 8)):
        raise weights.wrong("num_bits", "8" if is_float else "4 or 8")
    if strategy == "group" and (is_float or group_size < 1):
        raise weights.wrong("group_size", "a count, for whole numbers only,")
    block = read_block(weights, "block_structure") if strategy == "block" else None
    if strategy == "block" and block is None:
        raise weights.wrong("block_structure", "a list of two counts")
    return WeightScheme(
        layout=layout,
        bits=bits,
        is_float=is_float,
        is_symmetric=weights.flag("symmetric", default=True),
        strategy=strategy,
        group_size=group_size,
        block=block,
        has_column_order=weights.values.get("actorder") in (True, "group", "dynamic"),
    )


def _check_pattern(group: ConfigFields, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise CheckpointError(f"{group.source}: targets has {pattern!r}, which is no pattern: {error}") from error
