"""Attention of an encoder against a naive one in float64; a row's bits depend on the row alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.reference.backend import ReferenceBackend
from unit.kernels.cpu_backends import ISAS, assert_near, draw, each_dtype, has_same_bits, make_cpu

LENGTHS = [1, 70, 3, 33, 600]
SLACK = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-4}

each_backend = pytest.mark.parametrize(
    "make_backend", [ReferenceBackend, *([make_cpu] if ISAS else [])], ids=lambda make: make.__name__
)
each_bias = pytest.mark.parametrize("farthest", [None, 0, 20, 700])


def inputs(heads: int, groups: int, dtype: torch.dtype, channels: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    tokens = sum(LENGTHS)
    return tuple(draw(tokens, n, channels, dtype=dtype, seed=n) for n in (heads, groups, groups))  # type: ignore[return-value]


def bias_of(farthest: int | None, heads: int) -> Tensor | None:
    return None if farthest is None else draw(heads, 2 * farthest + 1, seed=9)


def naive(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """One row, head by head, in float64."""
    result = torch.zeros(query.shape, dtype=torch.float64)
    length, heads = query.shape[:2]
    for head in range(heads):
        group = head * key.shape[1] // heads
        scores = query[:, head].double() @ key[:, group].double().T * 0.3
        for q in range(length if bias is not None else 0):
            farthest = bias.shape[1] // 2  # type: ignore[union-attr]
            scores[q] += bias[head, (torch.arange(length) - q).clamp(-farthest, farthest) + farthest]  # type: ignore[index]
        result[:, head] = scores.softmax(-1) @ value[:, group].double()
    return result


@each_backend
@each_dtype
@each_bias
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (4, 2)])
def test_rows_of_any_length_equal_the_naive_result(
    make_backend: type[KernelBackend], dtype: torch.dtype, farthest: int | None, heads: int, groups: int
) -> None:
    parts, bias = inputs(heads, groups, dtype), bias_of(farthest, heads)
    found = make_backend().full_attention(*parts, np.array(LENGTHS), scale=0.3, bias=bias)
    rows = zip(*(part.split(LENGTHS) for part in parts), strict=True)
    assert_near(found, torch.cat([naive(*row, bias) for row in rows]), SLACK[dtype])


@each_backend
@each_dtype
@each_bias
def test_a_row_has_the_same_bits_alone_and_in_a_mix(
    make_backend: type[KernelBackend], dtype: torch.dtype, farthest: int | None
) -> None:
    backend, parts, bias = make_backend(), inputs(4, 2, dtype), bias_of(farthest, 4)
    together = backend.full_attention(*parts, LENGTHS, scale=0.3, bias=bias).split(LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = [part.split(LENGTHS)[row] for part in parts]
        assert has_same_bits(backend.full_attention(*alone, [length], scale=0.3, bias=bias), together[row])


@each_backend
def test_nan_stays_in_its_row(make_backend: type[KernelBackend]) -> None:
    backend, parts = make_backend(), inputs(2, 2, torch.float32)
    expected = backend.full_attention(*parts, LENGTHS, scale=0.3).split(LENGTHS)
    for part in parts:
        part[1:71] = torch.nan
    found = backend.full_attention(*parts, LENGTHS, scale=0.3).split(LENGTHS)
    assert found[1].isnan().all()
    assert all(has_same_bits(found[row], expected[row]) for row in (0, 2, 3, 4))


@each_backend
def test_no_rows_give_no_results(make_backend: type[KernelBackend]) -> None:
    nothing = torch.empty(0, 2, 8)
    assert make_backend().full_attention(nothing, nothing, nothing, [], scale=1.0).shape == (0, 2, 8)
