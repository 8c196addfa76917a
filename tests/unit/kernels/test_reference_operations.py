"""Every other operation of the reference kernels against torch in float64, and a row's bits alone and in a crowd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kilotron.errors import KernelError
from kilotron.kernels.interface import Activation, ExpertWeights, KVShape, Rotation
from kilotron.kernels.reference.backend import ReferenceBackend, rotate
from kilotron.kernels.registry import choose_backend, choose_device

BACKEND = ReferenceBackend()
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
SIZES = [1, 2, 3, 4, 5, 31, 64, 129]
HIDDEN, FFN = 48, 56

dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(result: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[result.dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(dtype: torch.dtype, rows: int, has_bias: bool) -> None:
    x, weight = draw(rows, HIDDEN, dtype=dtype), draw(FFN, HIDDEN, dtype=dtype, seed=1) * 0.2
    bias = draw(FFN, dtype=dtype, seed=2) if has_bias else None
    result = BACKEND.linear(x, BACKEND.pack_linear(weight, bias))
    expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert result.dtype == dtype
    assert_near(result, expected)


@dtypes
def test_embedding(dtype: torch.dtype) -> None:
    table = draw(10, HIDDEN, dtype=dtype)
    assert torch.equal(BACKEND.embedding(torch.tensor([3, 3, 9]), table), table[[3, 3, 9]])


@dtypes
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(dtype: torch.dtype, offset: float) -> None:
    x, weight = draw(7, HIDDEN, dtype=dtype) * 3, draw(HIDDEN, dtype=dtype, seed=1)
    expected = functional.rms_norm(x.double(), (HIDDEN,), weight.double() + offset, 1e-6)
    assert_near(BACKEND.rms_norm(x, weight, 1e-6, offset), expected)


@dtypes
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm(dtype: torch.dtype, has_bias: bool) -> None:
    x, weight = draw(7, HIDDEN, dtype=dtype) * 3 + 1, draw(HIDDEN, dtype=dtype, seed=1)
    bias = draw(HIDDEN, dtype=dtype, seed=2) if has_bias else None
    expected = functional.layer_norm(
        x.double(), (HIDDEN,), weight.double(), None if bias is None else bias.double(), 1e-5
    )
    assert_near(BACKEND.layer_norm(x, weight, bias, 1e-5), expected)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x) ** 2,
}


@dtypes
@pytest.mark.parametrize("kind", EXACT)
def test_activations(dtype: torch.dtype, kind: str) -> None:
    x = draw(5, 2 * FFN, dtype=dtype) * 2
    assert_near(BACKEND.activate(x, Activation(kind, is_gated=False)), EXACT[kind](x.double()))
    gate, up = x.double().chunk(2, -1)
    assert_near(BACKEND.activate(x, Activation(kind, is_gated=True)), EXACT[kind](gate) * up)


@dtypes
def test_a_clamped_gate_with_an_offset(dtype: torch.dtype) -> None:
    x = draw(5, 2 * FFN, dtype=dtype) * 2
    gate, up = x.double().chunk(2, -1)
    expected = EXACT["quick_gelu"](gate.clamp(max=1.5)) * (up.clamp(-1.5, 1.5) + 1)
    activation = Activation("quick_gelu", is_gated=True, clamp=1.5, linear_offset=1.0)
    assert_near(BACKEND.activate(x, activation), expected)
    alone = BACKEND.activate(x, Activation("silu", is_gated=False, clamp=1.5))
    assert_near(alone, functional.silu(x.double().clamp(max=1.5)))


@dtypes
@pytest.mark.parametrize("rotated", [16, 8])
def test_rotate_turns_pairs_of_halves(dtype: torch.dtype, rotated: int) -> None:
    x, angles = draw(6, 3, 16, dtype=dtype), draw(6, rotated // 2, seed=1)
    result = rotate(x, Rotation(angles.cos(), angles.sin()))
    first, second = x[..., : rotated // 2].double(), x[..., rotated // 2 : rotated].double()
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles).double(), angles.double())[:, None]
    assert_near(result, torch.cat((turned.real, turned.imag, x[..., rotated:].double()), -1))
    assert torch.equal(result[..., rotated:], x[..., rotated:])


@dtypes
def test_mix_experts(dtype: torch.dtype) -> None:
    x = draw(9, HIDDEN, dtype=dtype)
    weights = ExpertWeights(
        draw(4, 2 * FFN, HIDDEN, dtype=dtype, seed=1) * 0.1, draw(4, HIDDEN, FFN, dtype=dtype, seed=2) * 0.1
    )
    probabilities, chosen = draw(9, 4, seed=3).softmax(-1).topk(2)
    expected = torch.zeros(9, HIDDEN, dtype=torch.float64)
    for token in range(9):
        for probability, expert in zip(probabilities[token].double(), chosen[token].tolist(), strict=True):
            gate, up = (weights.gate_up[expert].double() @ x[token].double()).chunk(2)
            expected[token] += probability * (weights.down[expert].double() @ (functional.silu(gate) * up))
    assert_near(
        BACKEND.mix_experts(x, BACKEND.pack_experts(weights, Activation("silu", is_gated=True)), chosen, probabilities),
        expected,
    )


@dtypes
@pytest.mark.parametrize("is_gated", [True, False])
def test_experts_with_biases_and_without_a_gate(dtype: torch.dtype, is_gated: bool) -> None:
    width = 2 * FFN if is_gated else FFN
    weights = ExpertWeights(
        draw(3, width, HIDDEN, dtype=dtype, seed=1) * 0.1, draw(3, HIDDEN, FFN, dtype=dtype, seed=2) * 0.1,
        draw(3, width, dtype=dtype, seed=3), draw(3, HIDDEN, dtype=dtype, seed=4),
    )  # fmt: skip
    x, chosen, ones = draw(3, HIDDEN, dtype=dtype), torch.tensor([[2], [0], [2]]), torch.ones(3, 1)
    found = BACKEND.mix_experts(x, BACKEND.pack_experts(weights, Activation("relu2", is_gated=is_gated)), chosen, ones)
    for token, expert in enumerate(chosen[:, 0].tolist()):
        first, first_bias, second, second_bias = (
            weights[i][expert].double()
            for i in (0, 2, 1, 3)  # type: ignore[index]
        )
        gate, *up = (first @ x[token].double() + first_bias).chunk(2 if is_gated else 1)
        hidden = EXACT["relu2"](gate) * (up[0] if up else 1)
        assert_near(found[token], second @ hidden + second_bias)


def row_operations(dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """Operations on [rows, HIDDEN] of which each row must be independent."""
    packed = BACKEND.pack_linear(draw(FFN, HIDDEN, dtype=dtype, seed=1), draw(FFN, dtype=dtype, seed=2))
    small = BACKEND.pack_linear(draw(3, HIDDEN, dtype=dtype, seed=1), None)
    weight = draw(HIDDEN, dtype=dtype, seed=3)
    weights = ExpertWeights(draw(4, 2 * FFN, HIDDEN, dtype=dtype, seed=4), draw(4, HIDDEN, FFN, dtype=dtype, seed=5))
    experts = BACKEND.pack_experts(weights, Activation("silu", is_gated=True))

    def mix(x: Tensor) -> Tensor:
        probabilities, chosen = x[:, :4].float().softmax(-1).topk(2)
        return BACKEND.mix_experts(x, experts, chosen, probabilities)

    return {
        "linear": lambda x: BACKEND.linear(x, packed),
        "small linear": lambda x: BACKEND.linear(x, small),
        "rms_norm": lambda x: BACKEND.rms_norm(x, weight, 1e-6),
        "layer_norm": lambda x: BACKEND.layer_norm(x, weight, weight, 1e-6),
        "experts": mix,
        **{f"{kind}": lambda x, kind=kind: BACKEND.activate(x, Activation(kind, is_gated=False)) for kind in EXACT},
        **{
            f"gated {kind}": lambda x, kind=kind: BACKEND.activate(x, Activation(kind, is_gated=True)) for kind in EXACT
        },
        "odd gelu": lambda x: BACKEND.activate(x[:, :47], Activation("gelu", is_gated=False)),
    }


@pytest.mark.exact_bits
@dtypes
@pytest.mark.parametrize("name", row_operations(torch.float32))
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype, name: str) -> None:
    operation, x = row_operations(dtype)[name], draw(200, HIDDEN, dtype=dtype, seed=6)
    together = operation(x)
    for size in SIZES:
        for start in (0, 1, 70):
            assert torch.equal(operation(x[start : start + size].clone()), together[start : start + size]), (
                size,
                start,
            )


def make_shape(num_blocks: int = 5) -> KVShape:
    return KVShape(
        num_layers=2, num_blocks=num_blocks, block_size=4, num_query_groups=2, kv_channels=3, dtype=torch.float32
    )


def test_the_null_block_is_zero_and_the_cache_is_as_large_as_its_shape_says() -> None:
    layers = BACKEND.allocate_kv(make_shape())
    assert sum(cache.numbers.nbytes for layer in layers for cache in layer) == make_shape().total_bytes
    assert all(not cache.numbers[:, 0].any() for layer in layers for cache in layer)


def test_appended_keys_and_values_stand_at_their_slots_and_nowhere_else() -> None:
    kv = BACKEND.allocate_kv(make_shape())[1]
    for cache in kv:
        cache.numbers.zero_()
    keys, values = draw(3, 2, 3), draw(3, 2, 3, seed=1)
    BACKEND.rotate_and_append(torch.cat((keys, keys, values), 1), None, None, kv, torch.tensor([7, 19, 4]))
    for token, (block, offset) in enumerate([(1, 3), (4, 3), (1, 0)]):
        assert torch.equal(kv.keys.numbers[:, block, offset], keys[token])
        assert torch.equal(kv.values.numbers[:, block, offset], values[token])
    assert kv.keys.numbers.count_nonzero() == keys.numel()


def test_cleared_blocks_are_zero_in_all_layers_and_others_untouched() -> None:
    layers = BACKEND.allocate_kv(make_shape())
    for layer in layers:
        for cache in layer:
            cache.numbers.fill_(float("nan"))
    BACKEND.clear_kv_blocks(layers, [2, 4])
    for layer in layers:
        for cache in layer:
            assert not cache.numbers[:, [2, 4]].any()
            assert cache.numbers[:, [0, 1, 3]].isnan().all()


def test_an_unknown_backend_or_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KernelError, match=r"known: auto, .*reference"):
        choose_backend("imaginary", "cpu")
    with pytest.raises(KernelError, match="use auto, cpu"):
        choose_device("toaster")


def test_choices_come_with_a_reason() -> None:
    assert choose_backend("reference", "cpu").reason == "asked for"
    assert choose_device("cpu") == ("cpu", "asked for")
    assert choose_backend("auto", "cpu").reason
