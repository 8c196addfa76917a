"""A plan of integers becomes the tensors of one step, and blocks are clean when they change hands."""

import numpy as np
import pytest
import torch

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.contexts.request_table import RequestTable
from kilotron.errors import EngineClosedError
from kilotron.kernels.interface import AttentionRows, KVShape
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.step_plan import Admission, RowPlan, ScoreSpan, StepPlan


class WatchingBackend(ReferenceBackend):
    """Reference kernels that remember for which rows they planned attention."""

    def plan_attention(self, rows: AttentionRows, block_size: int) -> AttentionRows:  # type: ignore[override]
        return rows


SHAPE = KVShape(num_layers=2, num_blocks=12, block_size=4, num_query_groups=1, kv_channels=2, dtype=torch.float32)


@pytest.fixture
def context() -> DynamicInferenceContext:
    return DynamicInferenceContext(SHAPE, WatchingBackend(), max_requests=4, max_sequence_length=20)


def admission(slot: int, cached: list[int] | None = None) -> Admission:
    return Admission(slot, slot, [], 0, cached or [], SamplingParams(), 0, frozenset(), ())


def row(slot: int, start: int, tokens: list[int], blocks: list[int], *, samples: bool = True) -> RowPlan:
    return RowPlan(slot, slot, start, tokens, blocks, samples)


def test_rows_lie_one_after_the_other(context: DynamicInferenceContext) -> None:
    rows = [row(2, 0, [10, 11, 12, 13, 14], [7, 3]), row(0, 0, [20], [5])]
    batch = context.prepare_batch(StepPlan(1, rows, [admission(2), admission(0)]))
    assert batch.token_ids.tolist() == [10, 11, 12, 13, 14, 20]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0]
    assert batch.kv_slots.tolist() == [28, 29, 30, 31, 12, 20]
    assert batch.logits_index.tolist() == [4, 5]
    assert batch.num_samples == 2


def test_a_row_continues_where_it_stopped(context: DynamicInferenceContext) -> None:
    context.prepare_batch(StepPlan(1, [row(1, 0, [1, 2, 3], [9], samples=False)], [admission(1)]))
    batch = context.prepare_batch(StepPlan(2, [row(1, 3, [4, 5], [6])]))
    assert batch.positions.tolist() == [3, 4]
    assert batch.kv_slots.tolist() == [39, 24]
    assert batch.attention.num_computed.tolist() == [3]
    assert batch.attention.block_table.tolist() == [[9, 6]]


def test_cached_blocks_come_before_granted_ones(context: DynamicInferenceContext) -> None:
    batch = context.prepare_batch(StepPlan(1, [row(0, 8, [1], [2])], [admission(0, [4, 5])]))
    assert batch.attention.block_table.tolist() == [[4, 5, 2]]
    assert batch.kv_slots.tolist() == [8]


def test_a_slots_new_request_sees_nothing_of_the_one_before(context: DynamicInferenceContext) -> None:
    context.prepare_batch(StepPlan(1, [row(0, 0, [1] * 9, [2, 3, 4])], [admission(0)]))
    rows = [row(0, 0, [1], [8]), row(1, 0, [1] * 5, [9, 10])]
    batch = context.prepare_batch(StepPlan(2, rows, [admission(0), admission(1)]))
    assert batch.attention.block_table.tolist() == [[8, 0], [9, 10]]


def test_rows_that_do_not_sample_need_no_logits_but_scored_ones_do(context: DynamicInferenceContext) -> None:
    scored = row(0, 0, [1, 2, 3, 4], [1], samples=False)._replace(score=ScoreSpan(1, [3, 4]))
    rows = [scored, row(1, 0, [5, 6], [2]), row(2, 0, [7], [3], samples=False)]
    batch = context.prepare_batch(StepPlan(1, rows, [admission(0), admission(1), admission(2)]))
    assert batch.logits_index.tolist() == [5, 1, 2]
    assert batch.num_samples == 1


def test_granted_blocks_are_zeroed_and_cached_ones_kept(context: DynamicInferenceContext) -> None:
    for layer in context.storage.layers:
        for cache in layer:
            cache.numbers.fill_(float("nan"))
    context.prepare_batch(StepPlan(1, [row(0, 4, [1], [2])], [admission(0, [5])]))
    for layer in context.storage.layers:
        assert not layer.keys.numbers[:, 2].any()
        assert layer.values.numbers[:, 5].isnan().all()


def test_a_closed_context_has_no_cache(context: DynamicInferenceContext) -> None:
    context.close()
    context.close()
    with pytest.raises(EngineClosedError, match="build a new one"):
        context.prepare_batch(StepPlan(1, [row(0, 0, [1], [2])], [admission(0)]))


def test_a_request_table_grows_and_starts_over() -> None:
    table = RequestTable(max_requests=2, most_blocks=3)
    table.admit(1, [4])
    table.append(1, [5, 6])
    assert table.block_ids.tolist() == [[0, 0, 0], [4, 5, 6]]
    table.admit(1, [])
    assert not np.any(table.block_ids)


def test_shapes_know_their_bytes() -> None:
    assert SHAPE.block_bytes == 2 * 2 * 4 * 1 * 2 * 4
    assert SHAPE.total_bytes == 12 * SHAPE.block_bytes
