"""Norms, rotation, the cache's contents and experts of the CPU kernels against float64; each row has its own bits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import (
    Activation,
    AttentionOptions,
    AttentionRows,
    ExpertWeights,
    HeadNorms,
    KVShape,
    Rotation,
)
from kilotron.kernels.reference.backend import ReferenceBackend, rotate
from unit.kernels.attention_cases import append, make_case
from unit.kernels.cpu_backends import (
    assert_near,
    draw,
    each_dtype,
    each_isa,
    each_thread_count,
    has_same_bits,
    make_cpu,
)
from unit.kernels.test_cpu_linear import FUNCTIONS

SIZES = [1, 7, 16, 40, 64, 65, 200, 4099]


@each_dtype
@each_isa
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(isa: str, dtype: torch.dtype, size: int, offset: float) -> None:
    x, weight = draw(7, size, dtype=dtype) * 3, draw(size, dtype=dtype, seed=1)
    exact = functional.rms_norm(x.double(), (size,), weight.double() + offset, 1e-6)
    # Without an offset the normalized number is rounded once more, before it is multiplied.
    slack = exact.abs() * (3e-6 if dtype == torch.float32 else 1.01 * torch.finfo(dtype).eps / 2 + 3e-6)
    assert_near(make_cpu(isa).rms_norm(x, weight, 1e-6, offset), exact, slack)


@each_dtype
@each_isa
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm(isa: str, dtype: torch.dtype, size: int, has_bias: bool) -> None:
    x, weight = draw(7, size, dtype=dtype) * 3 + 1, draw(size, dtype=dtype, seed=1)
    bias = draw(size, dtype=dtype, seed=2) if has_bias else None
    exact = functional.layer_norm(x.double(), (size,), weight.double(), None if bias is None else bias.double(), 1e-5)
    assert_near(make_cpu(isa).layer_norm(x, weight, bias, 1e-5), exact, 5e-6)


@each_thread_count
@each_dtype
@each_isa
@pytest.mark.parametrize("shape", [(300, 200), (100, 6, 96)])
def test_a_rows_norm_has_the_same_bits_in_any_company_and_stride(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], threads: int
) -> None:
    cpu, size = make_cpu(isa, threads), shape[-1]
    x, weight = draw(*shape[:-1], size + 5, dtype=dtype)[..., 2 : size + 2], draw(size, dtype=dtype, seed=1)
    for norm in (lambda x: cpu.rms_norm(x, weight, 1e-6), lambda x: cpu.layer_norm(x, weight, weight, 1e-6)):
        together = norm(x)
        assert together.shape == shape
        for rows in (slice(0, 1), slice(5, 13), slice(40, 41), slice(0, 0), slice(99, 100)):
            assert has_same_bits(norm(x[rows]), together[rows])
            assert has_same_bits(norm(x[rows].contiguous()), together[rows])


def turning(tokens: int, half: int) -> Rotation:
    angles = draw(tokens, half, seed=9) * 7
    return Rotation(angles.cos(), angles.sin())


@each_thread_count
@each_dtype
@each_isa
@pytest.mark.parametrize(
    ("channels", "half"), [(8, 4), (40, 20), (64, 8), (80, 40), (96, 17), (128, 64), (256, 128), (6, 0)]
)
def test_queries_are_rotated(isa: str, dtype: torch.dtype, channels: int, half: int, threads: int) -> None:
    cpu, rotation = make_cpu(isa, threads), turning(50, half)
    kv = cpu.allocate_kv(shape_of(channels, dtype))[0]
    query, keys = draw(50, 6, channels, dtype=dtype), draw(50, 2, channels, dtype=dtype, seed=1)
    found = append(cpu, query, keys, keys, rotation, kv, torch.arange(16, 66))
    assert_near(found, exact_rotation(query, rotation), 1e-6)
    assert has_same_bits(found[..., 2 * half :].contiguous(), query[..., 2 * half :].contiguous())


def shape_of(channels: int, dtype: torch.dtype, block_size: int = 16) -> KVShape:
    return KVShape(
        num_layers=1, num_blocks=9, block_size=block_size, num_query_groups=2, kv_channels=channels, dtype=dtype
    )


def exact_rotation(x: Tensor, rotation: Rotation) -> Tensor:
    """[T, heads, D] in float64: pairs of halves as complex numbers."""
    half = rotation.cos.shape[-1]
    first, second = x[..., :half].double(), x[..., half : 2 * half].double()
    turned = torch.complex(first, second) * torch.complex(rotation.cos.double(), rotation.sin.double())[:, None]
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :].double()), -1)


@each_dtype
@each_isa
@pytest.mark.parametrize("block_size", [1, 3, 16, 48])
@pytest.mark.parametrize("channels", [7, 40])
def test_values_stand_at_their_slots(isa: str, dtype: torch.dtype, block_size: int, channels: int) -> None:
    """A query that sees one position gives that position's value, bit by bit."""
    cpu, tokens = make_cpu(isa), min(50, 7 * block_size)
    kv = cpu.allocate_kv(shape_of(channels, dtype, block_size))[0]
    values = draw(tokens, 2, channels, dtype=dtype)
    append(cpu, values, values, values, None, kv, torch.arange(block_size, block_size + tokens))
    table = torch.arange(1, 9)[None].numpy()
    plan = cpu.plan_attention(AttentionRows(*torch.tensor([[0], [tokens]]).numpy(), table), block_size)
    found = cpu.paged_attention(values, kv, plan, AttentionOptions(scale=1.0, window=1))
    assert has_same_bits(found, values)


@each_dtype
@each_isa
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("channels", "half"), [(40, 20), (64, 0), (256, 64)])
def test_heads_are_normed_before_they_are_rotated(
    isa: str, dtype: torch.dtype, channels: int, half: int, offset: float
) -> None:
    """With the bits of a norm and a rotation of their own."""
    cpu, rotation = make_cpu(isa), turning(20, half)
    weights = draw(channels, dtype=dtype, seed=4), draw(channels, dtype=dtype, seed=5)
    fused, plain = (make_case(cpu, [(0, 20)], channels=channels, dtype=dtype, is_written=False) for _ in range(2))
    slots, norms = fused.slots_of(0, 0, 20), HeadNorms(*weights, 1e-6, offset)
    fused.query = append(cpu, fused.query, fused.keys[0], fused.values[0], rotation, fused.kv, slots, norms)
    query, keys = (
        cpu.rms_norm(x, weight, 1e-6, offset) for x, weight in zip((plain.query, plain.keys[0]), weights, strict=True)
    )
    plain.query = append(cpu, query, keys, plain.values[0], rotation, plain.kv, slots)
    assert has_same_bits(fused.query, plain.query)
    assert has_same_bits(fused.run()[0], plain.run()[0])


@each_dtype
@each_isa
def test_heads_may_have_any_stride(isa: str, dtype: torch.dtype) -> None:
    cpu, rotation, slots = make_cpu(isa), turning(9, 10), torch.arange(16, 25)
    kv = cpu.allocate_kv(shape_of(20, dtype))[0]
    wide = draw(9, 8, 33, dtype=dtype)
    found = cpu.rotate_and_append(wide[..., 3:23], None, rotation, kv, slots)
    assert has_same_bits(found, cpu.rotate_and_append(wide[..., 3:23].contiguous(), None, rotation, kv, slots))
    turned = wide[..., 3:23].transpose(0, 1).contiguous().transpose(0, 1)
    assert has_same_bits(found, cpu.rotate_and_append(turned, None, rotation, kv, slots))


@each_dtype
@each_isa
def test_keys_are_rotated_on_their_way_into_the_cache(isa: str, dtype: torch.dtype) -> None:
    """Appended with a rotation, they give the attention of keys that were rotated before."""
    cpu, rotation = make_cpu(isa), turning(90, 12)
    found, expected = (make_case(cpu, [(0, 90)], channels=40, dtype=dtype, is_written=False) for _ in range(2))
    slots = found.slots_of(0, 0, 90)
    found.query = append(cpu, found.query, found.keys[0], found.values[0], rotation, found.kv, slots)
    expected.query, expected.keys[0] = rotate(expected.query, rotation), rotate(expected.keys[0], rotation)
    expected.append(0, 0, 90)
    torch.testing.assert_close(
        found.run()[0].float(), expected.run()[0].float(), rtol=0, atol=16 * torch.finfo(dtype).eps
    )


@each_thread_count
@each_dtype
@each_isa
def test_appending_in_any_pieces_gives_the_same_bits(isa: str, dtype: torch.dtype, threads: int) -> None:
    cpu = make_cpu(isa, threads)
    options = {"heads": 8, "groups": 4, "channels": 64, "dtype": dtype}
    expected = make_case(cpu, [(0, 100), (0, 33)], **options).run()
    for piece in (1, 5, 16, 40):
        case = make_case(cpu, [(0, 100), (0, 33)], **options, is_written=False)
        for start in range(0, 100, piece):
            case.append(0, start, min(start + piece, 100))
        case.append(1, 0, 33)
        assert all(map(has_same_bits, case.run(), expected)), piece


@each_isa
def test_a_new_cache_and_its_null_block_are_zero(isa: str) -> None:
    cpu = make_cpu(isa)
    layers = cpu.allocate_kv(shape_of(40, torch.float32))
    plan = cpu.plan_attention(AttentionRows(*torch.tensor([[3], [2]]).numpy(), torch.zeros(1, 1).long().numpy()), 16)
    found = cpu.paged_attention(draw(2, 2, 40), layers[0], plan, AttentionOptions(scale=1.0))
    assert not found.any()


NUM_EXPERTS, HIDDEN, FFN = 5, 44, 28


def expert_weights(dtype: torch.dtype) -> ExpertWeights:
    gate_up = draw(NUM_EXPERTS, 2 * FFN, HIDDEN, dtype=dtype, seed=1) * 0.2
    return ExpertWeights(gate_up, draw(NUM_EXPERTS, HIDDEN, FFN, dtype=dtype, seed=2) * 0.2)


def choose(tokens: int, chosen: int) -> tuple[Tensor, Tensor]:
    probabilities, ids = draw(tokens, NUM_EXPERTS, seed=3).softmax(-1).topk(chosen)
    return ids, probabilities


@each_thread_count
@each_dtype
@each_isa
@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("chosen", [1, 2, NUM_EXPERTS])
def test_mix_experts(isa: str, dtype: torch.dtype, kind: str, chosen: int, threads: int) -> None:
    cpu, weights, x = make_cpu(isa, threads), expert_weights(dtype), draw(19, HIDDEN, dtype=dtype)
    ids, probabilities = choose(19, chosen)
    exact = torch.zeros(19, HIDDEN, dtype=torch.float64)
    for choice in range(chosen):
        for token, expert in enumerate(ids[:, choice].tolist()):
            gate, up = (weights.gate_up[expert].double() @ x[token].double()).chunk(2)
            output = weights.down[expert].double() @ (FUNCTIONS[kind](gate) * up)
            exact[token] += probabilities[token, choice].double() * output
    found = cpu.mix_experts(x, cpu.pack_experts(weights, Activation(kind, is_gated=True)), ids, probabilities)
    assert_near(found, exact, {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype])


@each_dtype
@each_isa
@pytest.mark.parametrize("is_gated", [True, False])
def test_experts_with_biases_and_without_a_gate(isa: str, dtype: torch.dtype, is_gated: bool) -> None:
    width = 2 * FFN if is_gated else FFN
    weights = ExpertWeights(
        draw(3, width, HIDDEN, dtype=dtype, seed=1) * 0.2, draw(3, HIDDEN, FFN, dtype=dtype, seed=2) * 0.2,
        draw(3, width, dtype=dtype, seed=3), draw(3, HIDDEN, dtype=dtype, seed=4),
    )  # fmt: skip
    activation = Activation("quick_gelu", is_gated=is_gated, clamp=1.0, linear_offset=1.0)
    cpu, plain = make_cpu(isa), ReferenceBackend()
    ids, probabilities = torch.tensor([[2, 0], [0, 1], [2, 1], [1, 2], [0, 2]]), draw(5, 2, seed=5).softmax(-1)
    found = cpu.mix_experts(draw(5, HIDDEN, dtype=dtype), cpu.pack_experts(weights, activation), ids, probabilities)
    wide = ExpertWeights(*(part.float() for part in weights))  # type: ignore[union-attr]
    expected = plain.mix_experts(
        draw(5, HIDDEN, dtype=dtype).float(), plain.pack_experts(wide, activation), ids, probabilities
    )
    assert_near(found, expected.double(), {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype])


@each_dtype
@each_isa
def test_a_tokens_experts_give_the_same_bits_in_any_company_order_and_stride(isa: str, dtype: torch.dtype) -> None:
    cpu, x = make_cpu(isa, 2), draw(70, HIDDEN + 9, dtype=dtype)[:, 5 : 5 + HIDDEN]
    packed = cpu.pack_experts(expert_weights(dtype), Activation("silu", is_gated=True))
    ids, probabilities = choose(70, 3)
    together = cpu.mix_experts(x, packed, ids, probabilities)
    alone = make_cpu(isa)
    for rows in (slice(0, 1), slice(3, 10), slice(69, 70), slice(20, 61), slice(0, 0)):
        part = alone.mix_experts(x[rows].contiguous(), packed, ids[rows], probabilities[rows])
        assert has_same_bits(part, together[rows]), rows
    turned = cpu.mix_experts(x, packed, ids.flip(1).contiguous(), probabilities.flip(1).contiguous())
    assert has_same_bits(turned, together)


@each_isa
def test_many_experts_of_which_few_are_chosen(isa: str) -> None:
    cpu = make_cpu(isa)
    weights = ExpertWeights(draw(130, 64, 32, seed=1), draw(130, 32, 32, seed=2))
    packed, x = cpu.pack_experts(weights, Activation("silu", is_gated=True)), draw(3, 32)
    ids, ones = torch.tensor([[129, 0], [0, 129], [64, 64]]), torch.ones(3, 2)
    found = cpu.mix_experts(x, packed, ids, ones)
    halves = [cpu.mix_experts(x, packed, ids[:, i : i + 1].contiguous(), ones[:, :1].contiguous()) for i in (0, 1)]
    torch.testing.assert_close(found, sum(halves), rtol=1e-5, atol=1e-4)
