"""Products with plain weights against float64, and a row's bits in any company."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import Activation
from unit.kernels.cpu_backends import (
    ISAS,
    assert_near,
    draw,
    each_dtype,
    each_isa,
    each_thread_count,
    has_same_bits,
    make_cpu,
    needs_native,
)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x) ** 2,
}
# (inputs, outputs): single ones, whole tiles, one more and one less, several quads of panels with a rest.
SHAPES = [(1, 1), (5, 3), (16, 16), (31, 33), (32, 64), (33, 65), (48, 40), (97, 131), (64, 4), (257, 17)]
ACCUMULATION = 2.0**-22  # of the sum of sizes of all products


def sizes_of(x: Tensor, weight: Tensor) -> Tensor:
    """[rows, outputs]: the sums of the products without their signs."""
    return x.double().abs() @ weight.double().abs().T


@each_dtype
@each_isa
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_1_to_70_rows_equal_the_exact_product_and_have_the_bits_of_a_crowd(
    isa: str, dtype: torch.dtype, inputs: int, outputs: int
) -> None:
    cpu = make_cpu(isa)
    x, weight, bias = draw(70, inputs, dtype=dtype), draw(outputs, inputs, dtype=dtype, seed=1), draw(outputs, seed=2)
    packed = cpu.pack_linear(weight, bias)
    together = cpu.linear(x, packed)
    assert_near(together, x.double() @ weight.double().T + bias, ACCUMULATION * (sizes_of(x, weight) + 4))
    for rows in range(1, 71):
        assert has_same_bits(cpu.linear(x[:rows], packed), together[:rows]), rows
        assert has_same_bits(cpu.linear(x[70 - rows :], packed), together[70 - rows :]), rows


@each_thread_count
@each_dtype
@pytest.mark.parametrize("isa", [isa for isa in ISAS if "emulated" not in isa])
def test_more_rows_and_inputs_than_a_cache_holds(isa: str, dtype: torch.dtype, threads: int) -> None:
    x, weight = draw(391, 4137, dtype=dtype), draw(71, 4137, dtype=dtype, seed=1)
    cpu, alone = make_cpu(isa, threads), make_cpu(isa)
    packed = cpu.pack_linear(weight, None)
    together = cpu.linear(x, packed)
    assert_near(together, x.double() @ weight.double().T, ACCUMULATION * sizes_of(x, weight))
    for rows in (slice(0, 1), slice(380, 391), slice(384, 385), slice(7, 391), slice(0, 384)):
        assert has_same_bits(alone.linear(x[rows], packed), together[rows]), rows


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    isa=st.sampled_from(ISAS or [""]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    threads=st.integers(1, 2),
    activation=st.sampled_from([None, Activation("silu", is_gated=True), Activation("gelu", is_gated=False)]),
)
def test_any_split_of_rows_gives_the_same_bits(
    isa: str,
    dtype: torch.dtype,
    inputs: int,
    outputs: int,
    cuts: list[int],
    threads: int,
    activation: Activation | None,
) -> None:
    cpu = make_cpu(isa, threads)
    x, weight = draw(60, inputs, dtype=dtype), draw(2 * outputs, inputs, dtype=dtype, seed=1)
    packed, residual = cpu.pack_linear(weight, None, activation), draw(60, 2 * outputs, dtype=dtype, seed=2)
    residual = residual[:, : packed.outputs]
    together = cpu.linear(x, packed, residual)
    bounds = [0, *sorted(cuts), 60]
    parts = [cpu.linear(x[a:b], packed, residual[a:b]) for a, b in pairwise(bounds)]
    assert has_same_bits(torch.cat(parts), together)


@each_dtype
@each_isa
@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("outputs", [1, 16, 40, 72])
def test_a_gate_multiplies_and_a_residual_is_added(isa: str, dtype: torch.dtype, kind: str, outputs: int) -> None:
    cpu = make_cpu(isa)
    x, weight = draw(9, 40, dtype=dtype), draw(2 * outputs, 40, dtype=dtype, seed=1) * 0.2
    bias, residual = draw(2 * outputs, seed=2).to(dtype), draw(9, outputs, dtype=dtype, seed=3)
    found = cpu.linear(x, cpu.pack_linear(weight, bias, Activation(kind, is_gated=True)), residual)
    gate, up = (x.double() @ weight.double().T + bias.double()).chunk(2, -1)
    assert_near(found, FUNCTIONS[kind](gate) * up + residual.double(), 2e-5)


@each_dtype
@each_isa
def test_arrays_may_have_any_stride_between_rows(isa: str, dtype: torch.dtype) -> None:
    cpu, wide = make_cpu(isa), draw(8, 200, dtype=dtype)
    packed = cpu.pack_linear(draw(33, 128, dtype=dtype, seed=1)[:, 31:95], None)
    x, residual = wide[:, 3:67], wide[:, 100:133]
    assert has_same_bits(cpu.linear(x, packed, residual), cpu.linear(x.contiguous(), packed, residual.contiguous()))
    repeated = x[:1].expand(8, 64)
    assert has_same_bits(cpu.linear(repeated, packed), cpu.linear(repeated.contiguous(), packed))


@each_dtype
@each_isa
def test_no_rows_give_no_rows(isa: str, dtype: torch.dtype) -> None:
    cpu = make_cpu(isa, 2)
    packed = cpu.pack_linear(draw(24, 40, dtype=dtype), None)
    assert cpu.linear(draw(0, 40, dtype=dtype), packed, draw(0, 24, dtype=dtype)).shape == (0, 24)


@each_dtype
@each_isa
def test_nan_in_a_row_stays_in_its_row(isa: str, dtype: torch.dtype) -> None:
    cpu, x = make_cpu(isa), draw(40, 72, dtype=dtype)
    packed = cpu.pack_linear(draw(40, 72, dtype=dtype, seed=1), None)
    expected = cpu.linear(x, packed)
    x[17, 70] = torch.nan
    found = cpu.linear(x, packed)
    assert found[17].isnan().all()
    assert has_same_bits(found[:17], expected[:17])
    assert has_same_bits(found[18:], expected[18:])


@each_dtype
@each_isa
@pytest.mark.parametrize("outputs", [1, 40])
def test_a_gate_is_clamped_and_what_it_multiplies_too(isa: str, dtype: torch.dtype, outputs: int) -> None:
    x, weight = draw(9, 40, dtype=dtype) * 3, draw(2 * outputs, 40, dtype=dtype, seed=1) * 0.2
    activation = Activation("quick_gelu", is_gated=True, clamp=1.5, linear_offset=1.0)
    cpu = make_cpu(isa)
    found = cpu.linear(x, cpu.pack_linear(weight, None, activation))
    gate, up = (x.double() @ weight.double().T).chunk(2, -1)
    assert_near(found, FUNCTIONS["quick_gelu"](gate.clamp(max=1.5)) * (up.clamp(-1.5, 1.5) + 1), 2e-5)


@each_isa
@pytest.mark.parametrize("place", [0, 1])
def test_a_clamp_keeps_nan(isa: str, place: int) -> None:
    cpu, weight = make_cpu(isa), torch.ones(2, 1)
    weight[place] = torch.nan
    activation = Activation("quick_gelu", is_gated=True, clamp=7.0, linear_offset=1.0)
    assert cpu.linear(torch.ones(1, 1), cpu.pack_linear(weight, None, activation)).isnan().all()


def activated(isa: str, kind: str, values: Tensor) -> Tensor:
    """A product with 1 leaves nothing but the activation."""
    cpu = make_cpu(isa)
    packed = cpu.pack_linear(torch.ones(1, 1, dtype=values.dtype), None, Activation(kind, is_gated=False))
    return cpu.linear(values[:, None], packed)[:, 0]


@each_dtype
@each_isa
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activations_are_exact_to_a_few_millionths(isa: str, dtype: torch.dtype, kind: str) -> None:
    values = torch.cat((torch.linspace(-20, 20, 2001), 10.0 ** torch.arange(-30, 4), -(10.0 ** torch.arange(-30, 4))))
    values = values.to(dtype)
    values = values[FUNCTIONS[kind](values.double()).abs() <= torch.finfo(dtype).max]
    assert_near(
        activated(isa, kind, values), FUNCTIONS[kind](values.double()), 5e-7 * (1 + values.double().abs().clamp(max=6))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_isa
@pytest.mark.parametrize("kind", sorted(FUNCTIONS.keys() - {"relu2"}))
def test_activations_of_huge_numbers_are_those_numbers_or_zero(isa: str, dtype: torch.dtype, kind: str) -> None:
    huge = torch.tensor([1e10, 1e20, 1e30, 1e35, 3e38]).to(dtype)
    assert torch.equal(activated(isa, kind, huge), huge)
    assert activated(isa, kind, -huge).abs().max() < 1e-30


@each_dtype
@each_isa
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activations_keep_nan_and_infinity(isa: str, dtype: torch.dtype, kind: str) -> None:
    found = activated(isa, kind, torch.tensor([torch.nan, torch.inf, 0.0, 1.0]).to(dtype))
    assert found[0].isnan()
    assert found[1] == torch.inf
    assert found[2] == 0
    assert 0.7 < found[3] <= 1
