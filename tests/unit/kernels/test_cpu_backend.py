"""The CPU backend: packed weights give what plain ones give, with the same bits for any number of rows."""

import pytest
import torch

from kilotron.errors import KernelError
from kilotron.kernels.cpu.backend import CpuBackend, can_pack
from kilotron.kernels.reference.backend import ReferenceBackend, ReferenceLinear
from kilotron.kernels.registry import choose_backend

SHAPES = [(32, 32), (48, 40), (96, 256), (512, 192), (3072, 64)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size_in", "size_out"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_product_equals_the_plain_one(size_in: int, size_out: int, dtype: torch.dtype, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(size_in)
    weight = (torch.randn(size_out, size_in, generator=generator) / size_in**0.5).to(dtype)
    bias = torch.randn(size_out, generator=generator).to(dtype) if has_bias else None
    x = torch.randn(37, size_in, generator=generator).to(dtype)
    backend = CpuBackend()
    found = backend.linear(x, backend.pack_linear(weight, bias))
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(
        found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=99 * torch.finfo(torch.float32).eps
    )


@pytest.mark.exact_bits
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size_in", "size_out"), SHAPES)
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(size_in: int, size_out: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size_out)
    backend = CpuBackend()
    packed = backend.pack_linear(torch.randn(size_out, size_in, generator=generator).to(dtype), None)
    x = torch.randn(200, size_in, generator=generator).to(dtype)
    together = backend.linear(x, packed)
    for count in (1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 33, 64, 100):
        parts = [backend.linear(x[i : i + count], packed) for i in range(0, 200, count)]
        assert torch.equal(torch.cat(parts), together), f"{count} rows at a time"


def test_what_the_library_cannot_pack_stays_as_it_is() -> None:
    weight = torch.randn(16, 8).to(torch.float64)
    packed = CpuBackend().pack_linear(weight, None)
    assert isinstance(packed, ReferenceLinear)
    assert torch.equal(CpuBackend().linear(weight[:, :8], packed), weight @ weight.T)


def test_the_choice_says_why_and_bad_names_are_refused() -> None:
    assert can_pack(torch.float32) == isinstance(choose_backend("auto", "cpu").backend, CpuBackend)
    assert choose_backend("auto", "cpu").reason
    assert type(choose_backend("reference", "cpu").backend) is ReferenceBackend
    with pytest.raises(KernelError, match="known: auto, cpu, reference"):
        choose_backend("cpus", "cpu")
    with pytest.raises(KernelError, match="do not run on device 'meta'"):
        choose_backend("cpu", "meta")
