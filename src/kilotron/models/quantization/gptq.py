"""The matrices of GPTQ checkpoints, as AutoGPTQ and GPTQModel write them.

`qweight` [in * bits / 32, out] packs a column's numbers downwards, `qzeros` [groups, out * bits / 32] packs sideways;
`scales` are [groups, out]. `g_idx` [in] says which group an input column belongs to.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, dtype

from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.quantization.group_scheme import GroupScheme, is_packed, read_group_scheme
from kilotron.models.quantization.packed_integers import num_words, unpack
from kilotron.models.quantization.stored_matrix import (
    FLOAT_DTYPES,
    DecodedWeight,
    PartSpec,
    StoredGrid,
    StoredTensors,
    read_column_groups,
)

# Stored zeros are one less than they are, but in the second version.
ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}


class GptqFormat:
    """`MatrixFormat` of GPTQ."""

    suffixes = frozenset(("qweight", "qzeros", "scales", "g_idx"))
    unread_suffixes: frozenset[str] = frozenset()
    uses_activations = False

    def __init__(self, fields: ConfigFields) -> None:
        """Raises CheckpointError when the settings are of a kind that is not read."""
        self._scheme = read_group_scheme(fields, fields, (4, 8))
        layout_field = "checkpoint_format" if "checkpoint_format" in fields else "format"
        layout = fields.text(layout_field, "gptq")
        if layout not in ZERO_OFFSETS:
            raise fields.wrong(layout_field, f"one of {', '.join(ZERO_OFFSETS)}")
        self._zero_offset = ZERO_OFFSETS[layout]
        # GPTQModel's exceptions: a pattern that a module's name begins with -> other settings, "-:" for none at all.
        self._exceptions = [
            (_compile(fields, pattern.removeprefix("+:")), read_group_scheme(section, fields, (4, 8)))
            for pattern, section in _sections(fields.section("dynamic"))
            if not pattern.startswith("-:")
        ]
        self.description = f"gptq, {self._scheme.describe()}"

    def parts_of(self, module: str, shape: tuple[int, int], stored: StoredTensors) -> dict[str, PartSpec] | None:
        """qweight, qzeros and scales, and g_idx where there is one."""
        if not is_packed(module, self.suffixes, stored):
            return None
        scheme, (rows, columns) = self._scheme_of(module), shape
        bits, groups = scheme.bits, scheme.groups_of(columns)
        parts = {
            "qweight": PartSpec(("I32",), ((num_words(columns, bits), rows),)),
            "qzeros": PartSpec(("I32",), ((groups, num_words(rows, bits)),)),
            "scales": PartSpec(FLOAT_DTYPES, ((groups, rows),)),
        }
        if f"{module}.g_idx" in stored:
            parts["g_idx"] = PartSpec(("I32", "I64"), ((columns,),))
        return parts

    def decode(self, module: str, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: dtype) -> DecodedWeight:
        """Quantized, or plain when its columns are out of order."""
        scheme, (rows, columns) = self._scheme_of(module), shape
        bits, group_size = scheme.bits, scheme.columns_of(columns)
        group_of_column = read_column_groups(module, "g_idx", parts, scheme.groups_of(columns))
        if group_of_column is not None:
            in_order = torch.arange(columns, device=group_of_column.device) // group_size
            group_of_column = None if torch.equal(group_of_column, in_order) else group_of_column
        grid = StoredGrid(
            values=unpack(parts["qweight"].t(), bits, columns),
            scales=parts["scales"].t().float(),
            zeros=unpack(parts["qzeros"], bits, rows).t().to(torch.int16) + self._zero_offset,
            bits=bits,
            group_size=group_size,
            column_groups=group_of_column,
        )
        return grid.to_weight(dtype)

    def _scheme_of(self, module: str) -> GroupScheme:
        matching = (scheme for pattern, scheme in self._exceptions if pattern.match(module))
        return next(matching, self._scheme)


def _sections(fields: ConfigFields) -> list[tuple[str, ConfigFields]]:
    return [(name, fields.section(name)) for name in fields.values]


def _compile(fields: ConfigFields, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise CheckpointError(f"{fields.source}: dynamic has {pattern!r}, which is no pattern: {error}") from error
