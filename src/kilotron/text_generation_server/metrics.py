"""GET /metrics: the service's figures in Prometheus' text format, under our names and under vLLM's.

Labels come from fixed sets of the server's own words, never from requests.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from kilotron.coordinator.wire import EngineFacts, HistogramFigures, MetricsAnswer
from kilotron.text_generation_server.server_state import ServerState

# What dashboards, autoscalers and gateways ask of vLLM; the figures mean the same here.
VLLM_NAMES = frozenset(
    {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens", "generation_tokens",
        "request_success", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens_cached",
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens", "cache_config_info",
        "admission_rejections",
    }
)  # fmt: skip
_LABEL_OF_COUNTER = {"request_success": "finished_reason", "admission_rejections": "reason"}
_DEFAULT_LABEL = "code"
_ALL_ENGINES = "0"


class MetricsEndpoint:
    """Asks the coordinator each time; a scrape costs one message."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def show(self, request: Request) -> Response:
        """Everything."""
        answer = await self._state.client.read_metrics()
        registry = CollectorRegistry(auto_describe=False)
        facts = self._state.client.facts
        registry.register(ServiceCollector(answer, facts, "" if facts is None else self._state.model_name))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class ServiceCollector(Collector):
    """One answer of the coordinator as metric families."""

    def __init__(self, answer: MetricsAnswer, facts: EngineFacts | None, model_name: str) -> None:
        self._answer = answer
        self._facts = facts
        self._labels = {"model_name": model_name, "engine": _ALL_ENGINES}

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        for name, value in self._answer.gauges.items():
            yield from self._gauges(name, value)
        yield from self._counters()
        for name, figures in self._answer.histograms.items():
            yield from self._histograms(name, figures)
        yield from self._replicas()
        yield from self._cache_config()

    def _gauges(self, name: str, value: float) -> Iterator[Metric]:
        for full_name in _full_names(name):
            family = GaugeMetricFamily(full_name, _describe(name), labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        by_name: dict[str, dict[str, float]] = {}
        for name, value in self._answer.counters.items():
            base, _, label = name.partition("/")
            by_name.setdefault(base, {})[label] = value
        for base, values in by_name.items():
            label_names = list(self._labels)
            if any(values):
                label_names.append(_LABEL_OF_COUNTER.get(base, _DEFAULT_LABEL))
            for full_name in _full_names(base):
                family = CounterMetricFamily(full_name, _describe(base), labels=label_names)
                for label, value in values.items():
                    family.add_metric([*self._labels.values(), label][: len(label_names)], value)
                yield family

    def _histograms(self, name: str, figures: HistogramFigures) -> Iterator[Metric]:
        buckets, total = [], 0
        for bound, count in zip([*map(_bound, figures.bounds), "+Inf"], figures.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        for full_name in _full_names(name):
            family = HistogramMetricFamily(full_name, _describe(name), labels=list(self._labels))
            family.add_metric(list(self._labels.values()), buckets, figures.total)
            yield family

    def _replicas(self) -> Iterator[Metric]:
        """Each replica by its place, since its identity changes with every restart."""
        gauges = {
            "up": [float(replica.is_live and replica.phase == "ready") for replica in self._answer.replicas],
            "loading_progress": [replica.progress for replica in self._answer.replicas],
            "requests_running": [float(replica.load.num_running) for replica in self._answer.replicas],
            "requests_waiting": [float(replica.load.num_waiting) for replica in self._answer.replicas],
            "step_age_seconds": [replica.load.step_age_s for replica in self._answer.replicas],
        }
        for name, values in gauges.items():
            family = GaugeMetricFamily(f"kilotron:replica_{name}", f"Replica: {_describe(name)}", labels=["replica"])
            for index, value in enumerate(values):
                family.add_metric([str(index)], value)
            yield family

    def _cache_config(self) -> Iterator[Metric]:
        if self._facts is None:
            return
        labels = self._labels | {
            "block_size": str(self._facts.block_size),
            "num_gpu_blocks": str(self._facts.num_blocks),
            "enable_prefix_caching": str(self._facts.enable_prefix_caching),
        }
        for full_name in _full_names("cache_config_info"):
            family = GaugeMetricFamily(full_name, "Size of each replica's KV cache", labels=list(labels))
            family.add_metric(list(labels.values()), 1.0)
            yield family


def _full_names(name: str) -> list[str]:
    return [f"kilotron:{name}", f"vllm:{name}"] if name in VLLM_NAMES else [f"kilotron:{name}"]


def _describe(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _bound(bound: float) -> str:
    return repr(float(bound))
