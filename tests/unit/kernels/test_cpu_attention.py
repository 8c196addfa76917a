"""Paged attention of the CPU kernels against a naive one in float64; its bits depend on the row alone.

Every case lies in blocks that an earlier owner left full of NaN, so that a leak shows in each of these tests.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.kernels.interface import AttentionRows
from unit.kernels.attention_cases import Case, make_case, naive
from unit.kernels.cpu_backends import (
    ISAS,
    assert_near,
    each_dtype,
    each_isa,
    each_thread_count,
    has_same_bits,
    make_cpu,
    needs_native,
)

# Beside the result's rounding: float32 sums, and weights that are rounded to the cache's bfloat16.
SLACK = {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-2}
MIX = [(0, 20), (33, 1), (63, 2), (64, 1), (5, 90), (127, 1), (0, 1)]
SIZES = st.lists(st.tuples(st.integers(0, 140), st.integers(1, 60)), min_size=1, max_size=5)
# Further options of a case, each way through the code once; distances end within, at and beyond groups of 16.
TERMS: dict[str, dict[str, Any]] = {
    "none": {}, "softcap": {"softcap": 2.0}, "sinks": {"has_sinks": True}, "bias of 1": {"num_distances": 1},
    "bias of 16": {"num_distances": 16}, "bias of 37": {"num_distances": 37}, "bias of 300": {"num_distances": 300},
    "all": {"softcap": 2.0, "has_sinks": True, "num_distances": 21},
}  # fmt: skip
each_term = pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
FAST_ISAS = [isa for isa in ISAS if "emulated" not in isa]


def assert_exact(case: Case) -> None:
    for row, result in enumerate(case.run()):
        assert_near(result, naive(case, row), SLACK[result.dtype])


@each_dtype
@each_isa
@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 48])
def test_rows_of_any_length_equal_the_naive_result(isa: str, dtype: torch.dtype, block_size: int) -> None:
    assert_exact(make_case(make_cpu(isa), MIX, dtype=dtype, block_size=block_size))


@each_dtype
@each_isa
@pytest.mark.parametrize("channels", [1, 8, 40, 64, 80, 96, 128, 256])
def test_heads_of_any_size_equal_the_naive_result(isa: str, dtype: torch.dtype, channels: int) -> None:
    assert_exact(make_case(make_cpu(isa), MIX, dtype=dtype, channels=channels, scale=channels**-0.5))


@each_dtype
@each_isa
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 3), (4, 2), (14, 2), (64, 1)])
def test_any_number_of_queries_per_key_equals_the_naive_result(
    isa: str, dtype: torch.dtype, heads: int, groups: int
) -> None:
    assert_exact(make_case(make_cpu(isa), MIX, dtype=dtype, heads=heads, groups=groups))


@each_dtype
@each_isa
@pytest.mark.parametrize("window", [1, 5, 16, 33, 64, 100, 1000])
@pytest.mark.parametrize("name", ["none", "softcap", "all"])
def test_windows_equal_the_naive_result(isa: str, dtype: torch.dtype, window: int, name: str) -> None:
    assert_exact(make_case(make_cpu(isa), MIX, dtype=dtype, window=window, **TERMS[name]))


@each_dtype
@each_isa
@each_term
def test_what_changes_scores_equals_the_naive_result(isa: str, dtype: torch.dtype, terms: dict[str, Any]) -> None:
    assert_exact(make_case(make_cpu(isa), MIX, dtype=dtype, heads=6, **terms))


@each_dtype
@each_isa
@each_term
def test_an_int8_cache_is_near_the_naive_result(isa: str, dtype: torch.dtype, terms: dict[str, Any]) -> None:
    case = make_case(make_cpu(isa), MIX, dtype=dtype, kv_dtype=torch.int8, **terms)
    for row, result in enumerate(case.run()):
        assert_near(result, naive(case, row), 6e-2)


@each_isa
@pytest.mark.parametrize("sink", [-torch.inf, -200.0, 200.0])
def test_sinks_far_away_take_nothing_or_all(isa: str, sink: float) -> None:
    case = make_case(make_cpu(isa), MIX, has_sinks=True)
    case.options.sinks.fill_(sink)  # type: ignore[union-attr]
    for row, result in enumerate(case.run()):
        assert_near(result, torch.zeros_like(result).double() if sink > 0 else naive(case, row), 2e-5)


@each_thread_count
@each_dtype
@pytest.mark.parametrize("isa", FAST_ISAS)
def test_a_row_of_32k_positions_equals_the_naive_result(isa: str, dtype: torch.dtype, threads: int) -> None:
    case = make_case(make_cpu(isa, threads), [(32765, 3)], heads=2, groups=1, channels=40, dtype=dtype)
    assert_near(case.run()[0], naive(case, 0), SLACK[dtype])


@each_dtype
@each_isa
def test_scores_far_apart_neither_overflow_nor_vanish(isa: str, dtype: torch.dtype) -> None:
    case = make_case(make_cpu(isa), [(0, 150)], dtype=dtype, scale=40.0)
    assert_near(case.run()[0], naive(case, 0), 4 * SLACK[dtype] + 3e-4)


@needs_native
@settings(max_examples=50, deadline=None)
@given(
    isa=st.sampled_from(ISAS or [""]),
    threads=st.integers(1, 2),
    sizes=SIZES,
    shape=st.sampled_from([(4, 2), (4, 4), (3, 1), (14, 2), (64, 1)]),
    block_size=st.sampled_from([1, 3, 8, 16, 32, 48]),
    window=st.sampled_from([None, None, 1, 5, 33, 70]),
    terms=st.sampled_from(list(TERMS.values())),
    kv_dtype=st.sampled_from([None, None, torch.int8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_row_has_the_same_bits_alone_and_in_a_mix(
    isa: str,
    threads: int,
    sizes: list[tuple[int, int]],
    shape: tuple[int, int],
    block_size: int,
    window: int | None,
    terms: dict[str, Any],
    kv_dtype: torch.dtype | None,
    dtype: torch.dtype,
) -> None:
    options = {"heads": shape[0], "groups": shape[1], "window": window, "dtype": dtype, "kv_dtype": kv_dtype} | terms
    case = make_case(make_cpu(isa, threads), sizes, block_size=block_size, **options)
    together = case.run()
    torch.set_num_threads(1)
    for row, result in enumerate(together):
        assert result.isfinite().all()
        assert has_same_bits(case.run([row])[0], result)


@each_dtype
@each_isa
@pytest.mark.parametrize(
    ("window", "terms"), [(None, {}), *((37, terms) for terms in TERMS.values())], ids=["all seen", *TERMS]
)
def test_a_token_has_the_same_bits_at_the_end_of_a_row_and_in_its_middle(
    isa: str, dtype: torch.dtype, window: int | None, terms: dict[str, Any]
) -> None:
    case = make_case(make_cpu(isa), [(0, 330)], dtype=dtype, heads=14, window=window, **terms)
    expected = case.run()[0]
    for position in (0, 1, 15, 16, 17, 31, 63, 64, 65, 127, 128, 192, 255, 256, 300):
        for length in (1, 3, 30):
            found = case.run_part(0, position, position + length)
            assert has_same_bits(found, expected[position : position + length]), (position, length)


@each_dtype
@each_isa
@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("terms", [TERMS["none"], TERMS["all"]], ids=["none", "all"])
def test_tokens_that_arrive_in_chunks_have_the_bits_of_all_at_once(
    isa: str, dtype: torch.dtype, chunk: int, terms: dict[str, Any]
) -> None:
    cpu = make_cpu(isa)
    expected = make_case(cpu, [(0, 150)], dtype=dtype, **terms).run()[0]
    case = make_case(cpu, [(0, 150)], dtype=dtype, is_written=False, **terms)
    for start in range(0, 150, chunk):
        stop = min(start + chunk, 150)
        case.append(0, start, stop)
        assert has_same_bits(case.run_part(0, start, stop), expected[start:stop]), start


@each_dtype
@each_isa
@pytest.mark.parametrize("terms", [TERMS["none"], TERMS["all"]], ids=["none", "all"])
def test_the_block_size_does_not_change_bits(isa: str, dtype: torch.dtype, terms: dict[str, Any]) -> None:
    cpu = make_cpu(isa)
    expected = make_case(cpu, MIX, dtype=dtype, channels=40, **terms).run()
    for block_size in (1, 3, 8, 24, 48, 64, 100):
        found = make_case(cpu, MIX, dtype=dtype, channels=40, block_size=block_size, **terms).run()
        assert all(map(has_same_bits, found, expected)), block_size


@each_dtype
@each_isa
def test_two_threads_give_the_bits_of_one(isa: str, dtype: torch.dtype) -> None:
    sizes = [(100, 1)] * 9 + [(0, 130)]
    alone = make_case(make_cpu(isa), sizes, dtype=dtype, heads=8, groups=4, channels=64).run()
    shared = make_case(make_cpu(isa, 2), sizes, dtype=dtype, heads=8, groups=4, channels=64).run()
    assert all(map(has_same_bits, shared, alone))


@each_dtype
@each_isa
def test_keys_and_values_may_be_written_without_queries(isa: str, dtype: torch.dtype) -> None:
    case = make_case(make_cpu(isa), [(40, 3)], dtype=dtype, is_written=False)
    heads = torch.cat((case.keys[0], case.values[0]), 1)
    queries = case.backend.rotate_and_append(heads, None, None, case.kv, case.slots_of(0, 0, 43))
    assert queries.shape == (43, 0, 8)
    assert has_same_bits(case.run()[0], make_case(make_cpu(isa), [(40, 3)], dtype=dtype).run()[0])


@each_isa
@pytest.mark.parametrize("block_size", [8, 16, 48])
def test_nan_of_a_neighbour_does_not_leak(isa: str, block_size: int) -> None:
    case = make_case(make_cpu(isa), [*MIX, (9, 9)], block_size=block_size)
    expected = case.run()[:-1]
    for tensor in (case.keys[-1], case.values[-1]):
        tensor.fill_(torch.nan)
    case.append(len(MIX), 0, 18)
    results = case.run()
    assert results[-1].isnan().all()
    assert all(map(has_same_bits, results[:-1], expected))


@each_isa
def test_a_query_of_nan_stays_with_its_row(isa: str) -> None:
    case = make_case(make_cpu(isa), [(0, 5), (3, 1), (40, 7)])
    expected = case.run()
    case.query[5] = torch.nan
    results = case.run()
    assert results[1].isnan().all()
    assert has_same_bits(results[0], expected[0])
    assert has_same_bits(results[2], expected[2])


@each_dtype
@each_isa
def test_a_query_may_have_any_stride(isa: str, dtype: torch.dtype) -> None:
    case = make_case(make_cpu(isa), [(3, 9)], dtype=dtype, channels=40)
    expected = case.run()[0]
    case.query = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert has_same_bits(case.run_part(0, 3, 12).contiguous(), expected)


@each_isa
def test_no_rows_give_no_results(isa: str) -> None:
    case = make_case(make_cpu(isa, 2), [(0, 5)])
    rows = AttentionRows(*(part[:0] for part in case.rows))
    plan = case.backend.plan_attention(rows, case.block_size)
    assert case.backend.paged_attention(case.query[:0], case.kv, plan, case.options).shape == (0, 4, 8)
