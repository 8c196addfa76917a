"""The figures of a load test as the table that people compare: vLLM's, word for word."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kilotron.cli.load.load_figures import METRICS, percentile_name

_WIDTH = 50


def load_table(facts: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> str:
    """The table.

    Args:
        facts: figures, and "max_concurrency" and "request_rate".
        metrics: whose spreads are in it.
        percentiles: that are in it.
    """
    lines = [_title("Serving Benchmark Result", "="), *_totals(facts)]
    for name, (heading, long_heading) in METRICS.items():
        if name in metrics:
            lines.append(_title(long_heading, "-", is_spaced=False))
            lines.append(_row(f"Mean {heading} (ms):", facts[f"mean_{name}_ms"]))
            lines.append(_row(f"Median {heading} (ms):", facts[f"median_{name}_ms"]))
            for at in map(percentile_name, percentiles):
                lines.append(_row(f"P{at} {heading} (ms):", facts[f"p{at}_{name}_ms"]))
    return "\n".join([*lines, "=" * _WIDTH])


def _totals(facts: Mapping[str, Any]) -> list[str]:
    rate = facts["request_rate"]
    rows = [
        ("Successful requests:", facts["completed"]),
        ("Failed requests:", facts["failed"]),
        ("Maximum request concurrency:", facts["max_concurrency"]),
        ("Request rate configured (RPS):", rate if isinstance(rate, float) and math.isfinite(rate) else None),
        ("Benchmark duration (s):", facts["duration"]),
        ("Total input tokens:", facts["total_input_tokens"]),
        ("Total generated tokens:", facts["total_output_tokens"]),
        ("Request throughput (req/s):", facts["request_throughput"]),
        ("Request goodput (req/s):", facts["request_goodput"]),
        ("Output token throughput (tok/s):", facts["output_throughput"]),
        ("Peak output token throughput (tok/s):", facts["max_output_tokens_per_s"]),
        ("Peak concurrent requests:", float(facts["max_concurrent_requests"])),
        ("Total token throughput (tok/s):", facts["total_token_throughput"]),
    ]
    return [_row(name, value) for name, value in rows if value is not None]


def _row(name: str, value: float) -> str:
    return f"{name:<40} {value:<10.2f}" if isinstance(value, float) else f"{name:<40} {value:<10}"


def _title(text: str, fill: str, *, is_spaced: bool = True) -> str:
    return f"{f' {text} ' if is_spaced else text:{fill}^{_WIDTH}}"
