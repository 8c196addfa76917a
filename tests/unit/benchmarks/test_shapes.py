"""Tests of the counts behind "share of the limit"."""

import pytest

from workloads.definitions import Request, make_requests
from workloads.shapes import SHAPES, MachineRates, limit_of

QWEN = SHAPES["qwen3-0.6b"]
FAST_MEMORY = MachineRates(bytes_per_s=1e15, flops_per_s=1e12)
FAST_UNITS = MachineRates(bytes_per_s=1e10, flops_per_s=1e18)


@pytest.mark.parametrize(("name", "body", "total"), [("qwen3-0.6b", 440.4e6, 596.0e6), ("llama-1b", 973.1e6, 1235.7e6)])
def test_shapes_have_as_many_weights_as_their_models(name: str, body: float, total: float) -> None:
    shape = SHAPES[name]

    assert shape.body_weights == pytest.approx(body, rel=1e-3)
    assert shape.body_weights + shape.output_weights == pytest.approx(total, rel=1e-3)


def test_one_stream_decodes_at_most_as_fast_as_memory_brings_weights_and_cache() -> None:
    limit = limit_of("decode_tokens_per_s", QWEN, make_requests("A", 0), FAST_UNITS, 16)

    mean_context = 128 + 64
    assert QWEN.kv_bytes_per_token == 28 * 2 * 8 * 128 * 2
    assert limit == pytest.approx(1e10 / (596.0e6 * 2 + mean_context * QWEN.kv_bytes_per_token), rel=1e-3)


def test_prefill_is_bounded_by_operations_attention_among_them() -> None:
    limit = limit_of("prefill_tokens_per_s", QWEN, make_requests("B", 0), FAST_MEMORY, 16)

    per_token = 2 * 440.4e6 + 1024.5 * 4 * 16 * 128 * 28
    assert limit == pytest.approx(1e12 / (per_token + 2 * QWEN.output_weights / 2048), rel=1e-3)


def test_many_rows_are_bounded_by_whichever_takes_longer() -> None:
    requests = [Request([index] * 4, 2) for index in range(1000)]
    slow_units = MachineRates(bytes_per_s=1e15, flops_per_s=1e9)

    bounded = QWEN.decode_seconds(requests, slow_units)

    assert bounded == pytest.approx(1000 * 2 * 596.0e6 / 1e9, rel=1e-2)
    assert QWEN.decode_seconds(requests, FAST_UNITS) < bounded


def test_a_shared_prefix_is_computed_once() -> None:
    shared = [Request([7] * 500 + [index], 2) for index in range(10)]
    own = [Request([index] * 501, 2) for index in range(10)]

    assert QWEN.prefill_seconds(own, FAST_MEMORY) > 7 * QWEN.prefill_seconds(shared, FAST_MEMORY)


def test_smaller_weights_raise_the_limit() -> None:
    limits = [limit_of("decode_tokens_per_s", QWEN, make_requests("A", 0), FAST_UNITS, bits) for bits in (16, 8)]

    assert limits[0] is not None
    assert limits[1] == pytest.approx(2 * limits[0], rel=0.05)


def test_times_have_no_limit() -> None:
    assert limit_of("first_token_s", QWEN, make_requests("F", 0), FAST_UNITS, 16) is None
