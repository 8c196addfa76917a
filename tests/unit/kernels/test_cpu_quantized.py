"""Products with weights of 8 and 4 bits against float64 over the same whole numbers, and a row's bits."""

import pytest
import torch
from torch import Tensor

from kilotron.kernels.interface import Activation, ExpertWeights, QuantizedWeight
from kilotron.kernels.reference.backend import ReferenceBackend
from unit.kernels.cpu_backends import (
    ISAS,
    assert_near,
    draw,
    each_dtype,
    each_isa,
    each_thread_count,
    has_same_bits,
    make_cpu,
)
from unit.kernels.test_cpu_linear import FUNCTIONS

# (inputs, groups)
WHOLE = [(1, 1), (31, 1), (64, 1), (100, 1), (4200, 1)]
GROUPED = [(64, 2), (192, 2), (128, 1), (1024, 8), (2048, 2), (4224, 33), (8192, 64)]
each_bits = pytest.mark.parametrize("bits", [8, 4])


def make_quantized(
    outputs: int, inputs: int, groups: int, bits: int, dtype: torch.dtype, seed: int = 1
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    least, most = (-128, 127) if bits == 8 else (0, 15)
    zeros = torch.zeros(outputs, groups) if bits == 8 else torch.randint(0, 17, (outputs, groups), generator=generator)
    return QuantizedWeight(
        values=torch.randint(least, most + 1, (outputs, inputs), generator=generator).to(torch.int8),
        scales=(0.5 + torch.rand(outputs, groups, generator=generator)) / 2**bits,
        zeros=zeros.to(torch.int8),
        bits=bits,
        dtype=dtype,
    )


def plain(weight: QuantizedWeight) -> Tensor:
    """[out, in] in float64"""
    spread = weight.shape[1] // weight.scales.shape[1]
    scales, zeros = (part.double().repeat_interleave(spread, 1) for part in (weight.scales, weight.zeros))
    return (weight.values.double() - zeros) * scales


def slack_of(x: Tensor, weight: Tensor) -> Tensor:
    """Float32 activations may be rounded to bfloat16 on their way in: the weights are coarser."""
    relative = 2.0**-21 if x.dtype == torch.bfloat16 else 2.0**-8
    return relative * (x.double().abs() @ weight.abs().T) + 1e-6


@each_bits
@each_dtype
@each_isa
@pytest.mark.parametrize(("inputs", "groups"), [*WHOLE, *GROUPED])
def test_products_equal_the_exact_ones_and_have_the_bits_of_a_crowd(
    isa: str, dtype: torch.dtype, inputs: int, groups: int, bits: int
) -> None:
    cpu, x = make_cpu(isa), draw(17, inputs, dtype=dtype)
    weight = make_quantized(37, inputs, groups, bits, dtype)
    packed = cpu.pack_linear(weight, None)
    together = cpu.linear(x, packed)
    assert_near(together, x.double() @ plain(weight).T, slack_of(x, plain(weight)))
    for rows in (1, 2, 3, 6, 7, 8, 16):
        assert has_same_bits(cpu.linear(x[17 - rows :], packed), together[17 - rows :]), rows


@each_thread_count
@each_bits
@each_dtype
@pytest.mark.parametrize("isa", [isa for isa in ISAS if "emulated" not in isa])
@pytest.mark.parametrize("groups", [1, 3])
def test_more_rows_than_a_cache_holds(isa: str, dtype: torch.dtype, bits: int, groups: int, threads: int) -> None:
    cpu, x, weight = make_cpu(isa, threads), draw(388, 96, dtype=dtype), make_quantized(150, 96, groups, bits, dtype)
    packed = cpu.pack_linear(weight, None)
    together = cpu.linear(x, packed)
    assert_near(together, x.double() @ plain(weight).T, slack_of(x, plain(weight)))
    for rows in (slice(0, 1), slice(380, 388), slice(385, 388), slice(0, 384)):
        assert has_same_bits(make_cpu(isa).linear(x[rows], packed), together[rows])


@each_bits
@each_dtype
@each_isa
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_bias_gate_and_residual(isa: str, dtype: torch.dtype, bits: int, groups: int, kind: str) -> None:
    cpu, x, weight = make_cpu(isa), draw(9, 64, dtype=dtype) * 0.3, make_quantized(2 * 41, 64, groups, bits, dtype)
    bias, residual = draw(82, seed=2).to(dtype), draw(9, 41, dtype=dtype, seed=3)
    found = cpu.linear(x, cpu.pack_linear(weight, bias, Activation(kind, is_gated=True)), residual)
    gate, up = (x.double() @ plain(weight).T + bias.double()).chunk(2, -1)
    gate_slack, up_slack = slack_of(x, plain(weight)).chunk(2, -1)
    slack = 1.2 * (gate_slack * up.abs() + (gate.abs() + gate_slack) * up_slack) + 1e-5
    assert_near(found, FUNCTIONS[kind](gate) * up + residual.double(), slack)


@each_bits
@each_isa
@pytest.mark.parametrize("value", [-128, -1, 0, 7, 8, 15, 16, 127])
def test_every_whole_number_is_decoded_exactly(isa: str, bits: int, value: int) -> None:
    value = value if bits == 8 else value & 15
    for zero in range(17) if bits == 4 else [0]:
        parts = (torch.full((3, n), v, dtype=torch.int8) for n, v in ((32, value), (1, zero)))
        values, zeros = parts
        weight = QuantizedWeight(values=values, scales=torch.ones(3, 1), zeros=zeros, bits=bits, dtype=torch.float32)
        cpu = make_cpu(isa)
        packed = cpu.pack_linear(weight, None)
        for rows in (1, 8):
            assert torch.equal(cpu.linear(torch.ones(rows, 32), packed), torch.full((rows, 3), 32.0 * (value - zero)))


@each_bits
@each_isa
def test_quantized_and_plain_experts_mix_alike(isa: str, bits: int) -> None:
    cpu, reference, x = make_cpu(isa), ReferenceBackend(), draw(20, 64, dtype=torch.bfloat16)
    gate_up = [make_quantized(96, 64, 2, bits, torch.bfloat16, seed) for seed in range(4)]
    down = [make_quantized(64, 48, 1, bits, torch.bfloat16, seed) for seed in range(4, 8)]
    probabilities, ids = draw(20, 4, seed=3).softmax(-1).topk(2)
    found, expected = (
        backend.mix_experts(
            x, backend.pack_experts(ExpertWeights(gate_up, down), Activation("silu", is_gated=True)), ids, probabilities
        )
        for backend in (cpu, reference)
    )
    torch.testing.assert_close(
        found.float(), expected.float(), rtol=0.05, atol=0.02 * expected.float().abs().max().item()
    )


@each_isa
def test_whole_numbers_take_fewer_bytes(isa: str) -> None:
    cpu = make_cpu(isa)
    sizes = [cpu.pack_linear(make_quantized(64, 1024, 8, bits, torch.bfloat16), None).num_bytes for bits in (8, 4)]
    assert sizes[0] < 1.1 * 64 * 1024
    assert sizes[1] < 1.2 * 64 * 512
