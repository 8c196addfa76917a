"""The matrices of AWQ checkpoints in the order of AutoAWQ's gemm kernels.

`qweight` [in, out / 8], `qzeros` [groups, out / 8] and `scales` [groups, out]; of eight neighbouring outputs a word
holds the even ones first, from its lowest bits up: 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, dtype

from kilotron.models.config_fields import ConfigFields
from kilotron.models.quantization.group_scheme import is_packed, read_group_scheme
from kilotron.models.quantization.packed_integers import num_words, unpack
from kilotron.models.quantization.stored_matrix import FLOAT_DTYPES, DecodedWeight, PartSpec, StoredGrid, StoredTensors

# Where in a word each of eight neighbours is found.
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class AwqFormat:
    """`MatrixFormat` of AWQ."""

    suffixes = frozenset(("qweight", "qzeros", "scales"))
    unread_suffixes: frozenset[str] = frozenset()
    uses_activations = False

    def __init__(self, fields: ConfigFields) -> None:
        """Raises CheckpointError when the settings are of a kind that is not read."""
        self._scheme = read_group_scheme(fields, fields, (4,))
        name = "version" if "version" in fields else "format"
        if fields.text(name, "gemm").lower() != "gemm":
            raise fields.wrong(name, "gemm, the only order of packing that is read,")
        self.description = f"awq, {self._scheme.describe()}"

    def parts_of(self, module: str, shape: tuple[int, int], stored: StoredTensors) -> dict[str, PartSpec] | None:
        """qweight, qzeros and scales."""
        if not is_packed(module, self.suffixes, stored):
            return None
        rows, columns = shape
        groups, words = self._scheme.groups_of(columns), num_words(rows, 4)
        return {
            "qweight": PartSpec(("I32",), ((columns, words),)),
            "qzeros": PartSpec(("I32",), ((groups, words),)),
            "scales": PartSpec(FLOAT_DTYPES, ((groups, rows),)),
        }

    def decode(self, module: str, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: dtype) -> DecodedWeight:
        """Quantized, or plain when the groups are odd."""
        rows, columns = shape
        grid = StoredGrid(
            values=_unpack_in_order(parts["qweight"], rows),
            scales=parts["scales"].t().float(),
            zeros=_unpack_in_order(parts["qzeros"], rows).to(torch.int16),
            bits=4,
            group_size=self._scheme.columns_of(columns),
        )
        return grid.to_weight(dtype)


def _unpack_in_order(words: Tensor, num_rows: int) -> Tensor:
    """[n, out / 8] int32 -> [out, n] uint8"""
    numbers = unpack(words, 4, 8 * words.shape[1]).unflatten(1, (-1, 8))
    return numbers[..., PLACES].flatten(1)[:, :num_rows].t().contiguous()
