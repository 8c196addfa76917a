"""From what became of each request to the figures of a load test, under the names that vLLM's results have."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kilotron.cli.load.request_stream import Outcome

# name -> (heading, long heading), in the order of the table
METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}


def load_figures(
    outcomes: Sequence[Outcome],
    duration_s: float,
    *,
    goodput: Mapping[str, float],
    metrics: Sequence[str],
    percentiles: Sequence[float],
) -> dict[str, Any]:
    """The figures.

    Args:
        outcomes: of all requests.
        duration_s: of the whole test.
        goodput: most milliseconds, by metric, for a request to count as good; empty for no goodput.
        metrics: names out of METRICS whose spreads are wanted.
        percentiles: of these spreads, 0 to 100.
    """
    done = [outcome for outcome in outcomes if not outcome.error]
    num_input, num_output = sum(one.input_len for one in done), sum(one.output_len for one in done)
    num_good = sum(_is_good(outcome, goodput) for outcome in done)
    figures: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(outcomes) - len(done),
        "failures": _count_failures(outcomes),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / duration_s,
        "request_goodput": num_good / duration_s if goodput else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        "max_output_tokens_per_s": _peak_token_rate(done),
        "max_concurrent_requests": _peak_concurrency(done),
    }
    values = metric_values_ms(done)
    for name in METRICS:
        if name in metrics:
            figures |= _spread(name, values[name], percentiles)
    return figures


def metric_values_ms(done: Sequence[Outcome]) -> dict[str, list[float]]:
    """Each metric's value for each request that has it; for "itl" each gap of each request."""
    return {
        "ttft": [outcome.ttft_s * 1000 for outcome in done],
        "tpot": [outcome.tpot_s * 1000 for outcome in done if outcome.tpot_s is not None],
        "itl": [gap * 1000 for outcome in done for gap in outcome.itls_s],
        "e2el": [outcome.latency_s * 1000 for outcome in done],
    }


def percentile_name(percent: float) -> str:
    """How a percentile is called: 99, or 99.9."""
    return str(int(percent)) if percent == int(percent) else str(percent)


def _spread(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    array = np.asarray(values or [0.0])  # zeros where nothing succeeded, as everybody else writes
    spread = {
        f"mean_{name}_ms": float(array.mean()),
        f"median_{name}_ms": float(np.median(array)),
        f"std_{name}_ms": float(array.std()),
    }
    return spread | {f"p{percentile_name(at)}_{name}_ms": float(np.percentile(array, at)) for at in percentiles}


def _is_good(outcome: Outcome, goodput: Mapping[str, float]) -> bool:
    seconds = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s or 0.0, "e2el": outcome.latency_s}
    return all(seconds[name] * 1000 <= limit_ms for name, limit_ms in goodput.items())


def _count_failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many failed by HTTP status, or in another way."""
    reasons = (f"http_{one.status}" if one.status else one.error for one in outcomes if one.error)
    return dict(Counter(reasons).most_common())


def _peak_token_rate(done: Sequence[Outcome]) -> float:
    """Most chunks in one second, of those that begin with the first request."""
    if not done:
        return 0.0
    start = min(outcome.started for outcome in done)
    seconds: Counter[int] = Counter()
    for outcome in done:
        first = outcome.started - start + outcome.ttft_s
        seconds.update(math.floor(at) for at in itertools.accumulate(outcome.itls_s, initial=first))
    return float(max(seconds.values()))


def _peak_concurrency(done: Sequence[Outcome]) -> int:
    """Most of the successful requests that were under way at the same time."""
    changes = [(outcome.started, 1) for outcome in done]
    changes += [(outcome.started + outcome.latency_s, -1) for outcome in done]
    return max(itertools.accumulate(step for _, step in sorted(changes)), default=0)
