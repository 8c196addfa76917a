"""ServiceMetrics: counters, histograms and gauges of the whole service, kept by the coordinator as outputs pass.

Also the line about throughput that is logged while there is work. Knows no names of Prometheus.
"""

import logging
from collections import Counter
from collections.abc import Callable

from kilotron.coordinator.core.growing_counts import GrowingCounts
from kilotron.coordinator.core.histograms import (
    FIRST_TOKEN_BOUNDS,
    INTER_TOKEN_BOUNDS,
    REQUEST_BOUNDS,
    TOKEN_BOUNDS,
    Histogram,
)
from kilotron.coordinator.core.request_ledger import RequestLedger, TrackedRequest
from kilotron.coordinator.wire import (
    EngineFacts,
    EngineLoad,
    Finish,
    HistogramFigures,
    MetricsAnswer,
    Output,
    ReplicaStatus,
    RequestError,
)

_log = logging.getLogger(__name__)

_LOG_PERIOD_S = 10.0
_RATE_PERIOD_S = 1.0

# Counters that are there before anything was counted, so that rates of the first events are right.
_COUNTED_FROM_ZERO = (
    "request_success/stop",
    "request_success/length",
    "admission_rejections/NoPlaceInQueueError",
    "admission_rejections/QueueFullError",
    "request_retries",
    "replica_deaths",
    "protocol_errors",
)
_REPLICA_COUNTERS = (
    "prompt_tokens",
    "prompt_tokens_cached",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "generation_tokens",
    "num_preemptions",
    "engine_steps",
)


class ServiceMetrics:
    """All figures of one coordinator's life."""

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter(dict.fromkeys(_COUNTED_FROM_ZERO, 0))
        self._of_clients = GrowingCounts()
        self._of_replicas = GrowingCounts()
        self._first_token = Histogram(FIRST_TOKEN_BOUNDS)
        self._inter_token = Histogram(INTER_TOKEN_BOUNDS)
        self._latency = Histogram(REQUEST_BOUNDS)
        self._queue_time = Histogram(REQUEST_BOUNDS)
        self._prompt_tokens = Histogram(TOKEN_BOUNDS)
        self._generation_tokens = Histogram(TOKEN_BOUNDS)
        self._rates = _TokenRates()

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a counter, such as "protocol_errors"."""
        self._counters[name] += amount

    def refused(self, error: RequestError) -> None:
        """A request was not taken in."""
        self._counters[f"admission_rejections/{error.code}"] += 1

    def failed(self, error: RequestError) -> None:
        """An accepted request, or a continuation of it, ended in an error."""
        self._counters[f"request_failures/{error.code}"] += 1

    def forwarded(self, request: TrackedRequest, output: Output, now: float) -> None:
        """A client gets a piece of output; called before the request's own figures change."""
        num_tokens = len(output.token_ids)
        if num_tokens:
            last = request.last_outputs[output.choice]
            if last:
                self._inter_token.observe((now - last) / num_tokens, num_tokens)
            else:
                self._first_token.observe(now - request.arrival)
        if output.finish is not None:
            self._choice_ended(output.finish)

    def request_ended(self, request: TrackedRequest, finish: Finish, now: float) -> None:
        """The last continuation of a request came to its end."""
        self._latency.observe(now - request.arrival)
        self._queue_time.observe(request.dispatched - request.arrival + (finish.queue_s or 0.0))
        self._prompt_tokens.observe(request.num_prompt_tokens)

    def client_counted(self, incarnation: str, counters: dict[str, int]) -> None:
        """What a client counts itself, since it started."""
        self._of_clients.report(incarnation, counters)

    def replica_counted(self, incarnation: str, load: EngineLoad) -> None:
        """What a replica counts itself, since it started."""
        self._of_replicas.report(
            incarnation,
            {
                "prompt_tokens": load.num_prompt_tokens,
                "prompt_tokens_cached": load.num_cached_tokens,
                "prefix_cache_queries": load.num_queried_tokens,
                "prefix_cache_hits": load.num_cached_tokens,
                "generation_tokens": load.num_generated_tokens,
                "num_preemptions": load.num_preemptions,
                "engine_steps": load.num_steps,
            },
        )

    @property
    def mean_generation_tokens(self) -> float:
        """Of the continuations that ended; 0 before the first."""
        return self._generation_tokens.mean

    def seconds_for(self, num_tokens: int) -> float:
        """How long this many tokens take at the recent rate, as far as that is known."""
        return num_tokens / self._rates.tokens_per_s if self._rates.tokens_per_s else 1.0

    def tick(self, replicas: list[ReplicaStatus], facts: EngineFacts | None, num_queued: int, now: float) -> None:
        """Keeps the rates, and logs a line about them every ten seconds while there is work."""
        line = self._rates.update(self._of_replicas.read, now)
        if line is None:
            return
        num_running = sum(replica.load.num_running for replica in replicas)
        num_waiting = num_queued + sum(replica.load.num_waiting for replica in replicas)
        if any(line) or num_running or num_waiting:
            _log.info(
                "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, Running: %d reqs, "
                "Waiting: %d reqs, KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
                *line, num_running, num_waiting, 100 * _kv_usage(replicas, facts), 100 * self._hit_rate,
            )  # fmt: skip

    def answer(
        self, nonce: str, replicas: list[ReplicaStatus], facts: EngineFacts | None, ledger: RequestLedger
    ) -> MetricsAnswer:
        """Everything, as it is now."""
        gauges: dict[str, float] = {
            "num_requests_running": sum(replica.load.num_running for replica in replicas),
            "num_requests_waiting": ledger.num_queued + sum(replica.load.num_waiting for replica in replicas),
            "num_requests_queued": ledger.num_queued,
            "num_queued_tokens": ledger.num_queued_tokens,
            "num_requests_in_flight": len(ledger),
            "replicas_ready": sum(replica.is_live and replica.phase == "ready" for replica in replicas),
            "kv_cache_usage_perc": _kv_usage(replicas, facts),
            "prefix_cache_hit_rate": self._hit_rate,
        }
        replica_counters = dict.fromkeys(_REPLICA_COUNTERS, 0) | self._of_replicas.read()
        counters = {**self._of_clients.read(), **replica_counters, **self._counters}
        return MetricsAnswer(nonce, gauges, counters, self._read_histograms(), replicas)

    @property
    def _hit_rate(self) -> float:
        sums = self._of_replicas.read()
        return sums.get("prefix_cache_hits", 0) / max(sums.get("prefix_cache_queries", 0), 1)

    def _read_histograms(self) -> dict[str, HistogramFigures]:
        return {
            "time_to_first_token_seconds": self._first_token.read(),
            "inter_token_latency_seconds": self._inter_token.read(),
            "e2e_request_latency_seconds": self._latency.read(),
            "request_queue_time_seconds": self._queue_time.read(),
            "request_prompt_tokens": self._prompt_tokens.read(),
            "request_generation_tokens": self._generation_tokens.read(),
        }

    def _choice_ended(self, finish: Finish) -> None:
        self._generation_tokens.observe(finish.num_generated_tokens)
        if finish.error is not None:
            self.failed(finish.error)
        else:
            self._counters[f"request_success/{finish.reason[:32]}"] += 1


class _TokenRates:
    """Tokens per second, smoothed, and over the time between two log lines."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._last = (-_LOG_PERIOD_S, 0.0, 0.0)  # when, prompt tokens, generated tokens
        self._last_logged = self._last

    def update(self, read: Callable[[], dict[str, float]], now: float) -> tuple[float, float] | None:
        """Looks at the sums once a second; prompt and generation rates when a line is due."""
        elapsed = now - self._last[0]
        if elapsed < _RATE_PERIOD_S:
            return None
        sums = read()
        here = (now, sums.get("prompt_tokens", 0.0), sums.get("generation_tokens", 0.0))
        is_first = self._last[0] < 0
        num_tokens = here[1] + here[2] - self._last[1] - self._last[2]
        if num_tokens and not is_first:
            rate = num_tokens / elapsed
            self.tokens_per_s = 0.7 * self.tokens_per_s + 0.3 * rate if self.tokens_per_s else rate
        self._last = here
        since, prompt, generated = self._last_logged
        if is_first or now - since < _LOG_PERIOD_S:
            self._last_logged = here if is_first else self._last_logged
            return None
        self._last_logged = here
        return (here[1] - prompt) / (now - since), (here[2] - generated) / (now - since)


def _kv_usage(replicas: list[ReplicaStatus], facts: EngineFacts | None) -> float:
    """Share of all blocks, the null blocks left out, that requests own."""
    num_ready = sum(replica.phase == "ready" for replica in replicas)
    if facts is None or not num_ready or facts.num_blocks < 2:
        return 0.0
    return sum(replica.load.num_blocks_owned for replica in replicas) / (num_ready * (facts.num_blocks - 1))
