"""Paged attention in plain torch against a naive one in float64, over random mixes of rows; nothing foreign leaks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.kernels.reference.backend import ReferenceBackend
from unit.kernels.attention_cases import make_case, naive

BACKEND = ReferenceBackend()
SIZES = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=6)
SHAPES = st.sampled_from([(4, 2), (4, 4), (3, 1), (14, 2), (1, 1)])
# Further options of a case, each way through the code once.
TERMS: list[dict[str, Any]] = [
    {}, {"softcap": 2.0}, {"has_sinks": True}, {"num_distances": 20},
    {"softcap": 2.0, "has_sinks": True, "num_distances": 1},
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES,
    shape=SHAPES,
    block_size=st.sampled_from([1, 3, 8, 16, 32]),
    window=st.sampled_from([None, None, 1, 5, 33]),
    terms=st.sampled_from(TERMS),
)
def test_any_mix_of_rows_equals_the_naive_result(
    sizes: list[tuple[int, int]], shape: tuple[int, int], block_size: int, window: int | None, terms: dict[str, Any]
) -> None:
    heads, groups = shape
    case = make_case(BACKEND, sizes, heads=heads, groups=groups, block_size=block_size, window=window, **terms)
    for row, result in enumerate(case.run()):
        torch.testing.assert_close(result.double(), naive(case, row), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("terms", TERMS)
def test_half_precision_is_near_the_naive_result(dtype: torch.dtype, tolerance: float, terms: dict[str, Any]) -> None:
    case = make_case(BACKEND, [(0, 20), (33, 1), (5, 17)], dtype=dtype, **terms)
    for row, result in enumerate(case.run()):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), naive(case, row), rtol=tolerance, atol=tolerance)


@pytest.mark.exact_bits
@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    shape=SHAPES,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    terms=st.sampled_from(TERMS),
)
def test_a_row_has_the_same_bits_alone_and_in_a_mix(
    sizes: list[tuple[int, int]], shape: tuple[int, int], dtype: torch.dtype, terms: dict[str, Any]
) -> None:
    case = make_case(BACKEND, sizes, heads=shape[0], groups=shape[1], dtype=dtype, **terms)
    for row, result in enumerate(case.run()):
        assert torch.equal(case.run([row])[0], result)


@pytest.mark.exact_bits
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_has_the_same_bits_at_the_end_of_a_row_and_in_its_middle(
    dtype: torch.dtype, channels: int, terms: dict[str, Any]
) -> None:
    case = make_case(BACKEND, [(0, 1100)], dtype=dtype, channels=channels, **terms)
    expected = case.run()[0]
    for position in (0, 1, 15, 16, 127, 128, 129, 190, 192, 200, 255, 256, 300, 383, 384, 500, 511, 512, 700, 1024):
        for length in (1, 3, 50):
            stop = min(position + length, 1100)
            assert torch.equal(case.run_part(0, position, stop), expected[position:stop]), (position, length)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, window=st.sampled_from([None, 7]), softcap=st.sampled_from([None, 2.0]))
def test_nan_in_blocks_of_others_does_not_leak(
    sizes: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    case = make_case(BACKEND, [*sizes, (9, 9)], window=window, softcap=softcap)
    expected = case.run()[:-1]
    for tensor in (case.keys[-1], case.values[-1]):
        tensor.fill_(float("nan"))
    case.append(len(sizes), 0, 18)
    for result, before in zip(case.run(), expected, strict=False):
        assert torch.equal(result, before)


def test_a_query_of_nan_stays_with_its_row() -> None:
    case = make_case(BACKEND, [(0, 5), (3, 1), (40, 7)])
    expected = case.run()
    case.query[5] = float("nan")
    results = case.run()
    assert torch.isnan(results[1]).all()
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[2], expected[2])


def test_what_follows_a_row_in_its_last_block_does_not_matter() -> None:
    case = make_case(BACKEND, [(0, 9)])
    assert case.run()[0][3:5].isfinite().all()
    torch.testing.assert_close(case.run_part(0, 3, 5), case.run()[0][3:5])


def test_keys_and_values_may_be_written_without_queries() -> None:
    case = make_case(BACKEND, [(40, 3)], is_written=False)
    heads = torch.cat((case.keys[0], case.values[0]), 1)
    assert BACKEND.rotate_and_append(heads, None, None, case.kv, case.slots_of(0, 0, 43)).shape == (43, 0, 8)
    torch.testing.assert_close(case.run()[0].double(), naive(case, 0), rtol=2e-5, atol=2e-5)
