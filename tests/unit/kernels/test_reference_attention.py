"""Paged attention against a naive one in float64, over random mixes of rows; nothing foreign leaks into a row."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kilotron.kernels.interface import AttentionOptions, AttentionRows, KVShape
from kilotron.kernels.reference.attention import ReferenceKVLayer
from kilotron.kernels.reference.backend import ReferenceBackend

BACKEND = ReferenceBackend()
MOST_BLOCKS = 24


@dataclass
class Case:
    """A cache full of numbers and the rows of one step over it."""

    query: Tensor
    kv: ReferenceKVLayer
    rows: AttentionRows
    options: AttentionOptions

    def run(self, members: list[int] | None = None) -> list[Tensor]:
        """The results of some rows (all unless said), computed together."""
        members = list(range(len(self.rows.num_new))) if members is None else members
        first = np.cumsum(self.rows.num_new) - self.rows.num_new
        query = torch.cat([self.query[first[i] : first[i] + self.rows.num_new[i]] for i in members])
        rows = AttentionRows(*(part[members] for part in self.rows))
        plan = BACKEND.plan_attention(rows, self.kv.keys.numbers.shape[2])
        return list(BACKEND.paged_attention(query, self.kv, plan, self.options).split(rows.num_new.tolist()))


def make_case(
    sizes: list[tuple[int, int]],
    *,
    heads: int = 4,
    groups: int = 2,
    channels: int = 8,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
) -> Case:
    """`sizes` are (computed, new) tokens per row; blocks are handed out in random order."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    num_blocks = [-(-(computed + new) // block_size) for computed, new in sizes]
    total = sum(num_blocks) + 3
    shape = KVShape(
        num_layers=1,
        num_blocks=total,
        block_size=block_size,
        num_query_groups=groups,
        kv_channels=channels,
        dtype=dtype,
    )
    kv = BACKEND.allocate_kv(shape)[0]
    for cache in kv:
        cache.numbers[:, 1:] = torch.randn(cache.numbers[:, 1:].shape, generator=generator).to(dtype)
    order = (torch.randperm(total - 1, generator=generator) + 1).numpy()
    table = np.zeros((len(sizes), max(num_blocks)), dtype=np.int64)
    for row, count in enumerate(num_blocks):
        table[row, :count], order = order[:count], order[count:]
    computed, new = (np.array(column, dtype=np.int64) for column in zip(*sizes, strict=True))
    query = torch.randn((int(new.sum()), heads, channels), generator=generator).to(dtype)
    options = AttentionOptions(scale=0.4, window=window, softcap=softcap)
    return Case(query, kv, AttentionRows(computed, new, table), options)


def naive(case: Case, row: int) -> Tensor:
    """[new, heads, channels] in float64, one query and one head at a time."""
    computed, new = int(case.rows.num_computed[row]), int(case.rows.num_new[row])
    first = int(case.rows.num_new[:row].sum())
    groups, _, block_size, channels = case.kv.keys.numbers.shape
    blocks = case.rows.block_table[row, : -(-(computed + new) // block_size)]
    keys, values = (cache.numbers[:, blocks].reshape(groups, -1, channels).double() for cache in case.kv)
    heads = case.query.shape[1]
    result = torch.zeros(new, heads, channels, dtype=torch.float64)
    for index in range(new):
        position = computed + index
        begin = 0 if case.options.window is None else max(0, position - case.options.window + 1)
        for head in range(heads):
            group = head * groups // heads
            scores = keys[group, begin : position + 1] @ case.query[first + index, head].double() * case.options.scale
            if case.options.softcap is not None:
                scores = torch.tanh(scores / case.options.softcap) * case.options.softcap
            result[index, head] = scores.softmax(0) @ values[group, begin : position + 1]
    return result


SIZES = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=6)
SHAPES = st.sampled_from([(4, 2), (4, 4), (3, 1), (14, 2), (1, 1)])


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES,
    shape=SHAPES,
    block_size=st.sampled_from([1, 3, 8, 16, 32]),
    window=st.sampled_from([None, None, 1, 5, 33]),
    softcap=st.sampled_from([None, 2.0]),
)
def test_any_mix_of_rows_equals_the_naive_result(
    sizes: list[tuple[int, int]], shape: tuple[int, int], block_size: int, window: int | None, softcap: float | None
) -> None:
    heads, groups = shape
    case = make_case(sizes, heads=heads, groups=groups, block_size=block_size, window=window, softcap=softcap)
    for row, result in enumerate(case.run()):
        torch.testing.assert_close(result.double(), naive(case, row), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_half_precision_is_near_the_naive_result(dtype: torch.dtype, tolerance: float, softcap: float | None) -> None:
    case = make_case([(0, 20), (33, 1), (5, 17)], dtype=dtype, softcap=softcap)
    for row, result in enumerate(case.run()):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), naive(case, row), rtol=tolerance, atol=tolerance)


@pytest.mark.exact_bits
@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    shape=SHAPES,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    softcap=st.sampled_from([None, 2.0]),
)
def test_a_row_has_the_same_bits_alone_and_in_a_mix(
    sizes: list[tuple[int, int]], shape: tuple[int, int], dtype: torch.dtype, softcap: float | None
) -> None:
    case = make_case(sizes, heads=shape[0], groups=shape[1], dtype=dtype, softcap=softcap)
    for row, result in enumerate(case.run()):
        assert torch.equal(case.run([row])[0], result)


@pytest.mark.exact_bits
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_has_the_same_bits_at_the_end_of_a_row_and_in_its_middle(
    dtype: torch.dtype, channels: int, softcap: float | None
) -> None:
    whole = make_case([(0, 1100)], dtype=dtype, channels=channels, softcap=softcap)
    expected = whole.run()[0]
    for position in (0, 1, 15, 16, 127, 128, 129, 190, 192, 200, 255, 256, 300, 383, 384, 500, 511, 512, 700, 1024):
        for length in (1, 3, 50):
            stop = min(position + length, 1100)
            rows = AttentionRows(np.array([position]), np.array([stop - position]), whole.rows.block_table)
            part = Case(whole.query[position:stop], whole.kv, rows, whole.options).run()[0]
            assert torch.equal(part, expected[position:stop]), (position, length)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, window=st.sampled_from([None, 7]), softcap=st.sampled_from([None, 2.0]))
def test_nan_in_blocks_of_others_does_not_leak(
    sizes: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    case = make_case([*sizes, (9, 9)], window=window, softcap=softcap)
    expected = case.run()[:-1]
    own = {0, *case.rows.block_table[:-1].reshape(-1).tolist()}  # the null block pads every row
    for cache in case.kv:
        for block_id in set(range(cache.numbers.shape[1])) - own:
            cache.numbers[:, block_id] = float("nan")
    for result, before in zip(case.run()[:-1], expected, strict=True):
        assert torch.equal(result, before)


def test_a_query_of_nan_stays_with_its_row() -> None:
    case = make_case([(0, 5), (3, 1), (40, 7)])
    expected = case.run()
    case.query[5] = float("nan")
    results = case.run()
    assert torch.isnan(results[1]).all()
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[2], expected[2])


def test_what_follows_a_row_in_its_last_block_does_not_matter() -> None:
    case = make_case([(3, 2)])
    expected = case.run()[0]
    for cache in case.kv:
        cache.numbers[:, case.rows.block_table[0, 0], 5:] = 7.0
    torch.testing.assert_close(case.run()[0], expected)
