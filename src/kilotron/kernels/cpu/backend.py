"""CpuBackend: linear layers on weights that oneDNN packed once, all else as in the reference backend.

torch's plain linear rearranges the weight at every call, which at a few rows costs more than the product; packed, a
decode step reads each weight once. A packed product also sums in one order whatever the number of rows, from two on.
The operations are those torch's own compiler uses (`torch.ops.mkldnn`), bundled in every CPU build of torch.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import Activation, PackedLinear, Weight
from kilotron.kernels.reference.backend import ReferenceBackend, ReferenceLinear

# A single row takes another path through the library, with another order of summation.
_FEWEST_ROWS = 2


class PackedWeight(NamedTuple):
    """A weight matrix in the library's own order, and the bias [out] as it is."""

    weight: Any
    bias: Tensor | None
    activation: Activation | None


class CpuBackend(ReferenceBackend):
    """`KernelBackend` for CPUs; see `kernels/interface.py` for what each operation means."""

    name = "cpu"

    def pack_linear(self, weight: Weight, bias: Tensor | None, activation: Activation | None = None) -> PackedLinear:
        """Packs what the library has a path for on this machine (float16 needs newer CPUs); keeps the rest as it is."""
        plain = super().pack_linear(weight, bias, activation)
        if not can_pack(plain.weight.dtype):
            return plain
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), None)
        return PackedWeight(packed, bias, activation)

    def linear(self, x: Tensor, packed: PackedLinear, residual: Tensor | None = None) -> Tensor:
        """[T, in] -> [T, out]"""
        if isinstance(packed, ReferenceLinear):
            return super().linear(x, packed, residual)
        num_rows = x.shape[0]
        padded = functional.pad(x, (0, 0, 0, _FEWEST_ROWS - num_rows)) if num_rows < _FEWEST_ROWS else x
        result: Tensor = torch.ops.mkldnn._linear_pointwise(padded, packed.weight, packed.bias, "none", [], "")
        result = self.activate(result[:num_rows], packed.activation)
        return result if residual is None else residual + result


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch can pack weights of a type on this machine; tried on a small one."""
    try:
        weight = torch.eye(16).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        result = torch.ops.mkldnn._linear_pointwise(weight, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(result, weight)
