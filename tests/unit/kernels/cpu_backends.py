"""CPU backends of every instruction set that runs here, or of the one that the environment asks for."""

import os
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from kilotron.kernels.cpu.backend import ISA_VARIABLE, CpuBackend

try:
    native: Any = import_module("kilotron.kernels.cpu._native")
except ImportError:  # the tests that need it have no parameters then, so that pytest skips them
    native = None

FORCED = os.environ.get(ISA_VARIABLE)
ISAS: list[str] = [] if native is None else [FORCED] if FORCED else native.supported_isas()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

each_isa = pytest.mark.parametrize("isa", ISAS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
each_thread_count = pytest.mark.parametrize("threads", [1, 2], ids=["1-thread", "2-threads"])
needs_native = pytest.mark.skipif(not ISAS, reason="the CPU kernels are not compiled, or do not run here")


def make_cpu(isa: str | None = None, threads: int = 1) -> CpuBackend:
    """A backend on one instruction set, the best one unless said; torch has so many threads from then on."""
    torch.set_num_threads(threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ISA_VARIABLE, isa or ISAS[0])
        return CpuBackend()


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def has_same_bits(found: Tensor, expected: Tensor) -> bool:
    """Stricter than `torch.equal`: NaN equals NaN, and 0 is not -0."""
    integers = torch.int32 if found.element_size() == 4 else torch.int16
    return found.dtype == expected.dtype and torch.equal(found.view(integers), expected.view(integers))


def assert_near(found: Tensor, exact: Tensor, slack: Tensor | float) -> None:
    """`found` is `exact` (float64) up to its own rounding and a slack for the sums before it."""
    assert found.shape == exact.shape
    error = (found.double() - exact).abs()
    allowed = ROUNDING[found.dtype] * 1.01 * exact.abs() + slack + torch.finfo(found.dtype).smallest_normal
    worst = (error - allowed).max().item() if error.numel() else 0.0
    assert worst <= 0, f"beyond what is allowed by {worst:.3g}"
