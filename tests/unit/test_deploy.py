"""Tests of deploy/: files parse, agree with each other, and the dashboard asks for metrics that exist."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from kilotron.coordinator.core.request_ledger import RequestLedger
from kilotron.coordinator.core.service_metrics import ServiceMetrics
from kilotron.text_generation_server.metrics import ServiceCollector

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

# The metrics that the dashboard may use, with their labels. The server must export each of them under this name.
GAUGES: dict[str, set[str]] = {
    "num_requests_running": set(),
    "num_requests_waiting": set(),
    "kv_cache_usage_perc": set(),
    "replicas_ready": set(),
}
COUNTERS: dict[str, set[str]] = {
    "prompt_tokens_total": set(),
    "generation_tokens_total": set(),
    "prefix_cache_queries_total": set(),
    "prefix_cache_hits_total": set(),
    "num_preemptions_total": set(),
    "request_success_total": {"finished_reason"},
    "admission_rejections_total": {"reason"},
    "http_responses_total": {"code"},
}
HISTOGRAMS = {
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
}
WITHOUT_ALIAS = {"replicas_ready", "http_responses_total"}

_METRIC = re.compile(r"(\$\{prefix\}|kilotron|vllm):(\w+)")
_BY = re.compile(r"by \(([^)]*)\)")


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/kilotron.json").read_text())
    return found


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_known_and_used_as_its_kind(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        for prefix, name in _METRIC.findall(expression):
            if name.endswith("_bucket"):
                assert name.removesuffix("_bucket") in HISTOGRAMS, name
                assert "histogram_quantile(" in expression
            else:
                assert name in GAUGES | COUNTERS, name
                assert ("rate(" in expression) == (name in COUNTERS), expression
            assert (prefix == "kilotron") == (name in WITHOUT_ALIAS), f"{prefix}:{name}"


def test_every_known_metric_is_on_the_dashboard(dashboard: dict[str, Any]) -> None:
    used = {name.removesuffix("_bucket") for text in expressions(dashboard) for _, name in _METRIC.findall(text)}
    assert used == GAUGES.keys() | COUNTERS.keys() | HISTOGRAMS


def test_the_dashboard_groups_by_labels_that_the_metrics_have(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        labels = {label.strip() for found in _BY.findall(expression) for label in found.split(",")} - {"le"}
        for _, name in _METRIC.findall(expression):
            assert labels <= COUNTERS.get(name, set()), expression


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_is_provisioned_with_the_prometheus_of_the_compose_file(dashboard: dict[str, Any]) -> None:
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (provider,) = read_yaml("grafana/provisioning/dashboards/kilotron.yml")["providers"]
    mounts = read_yaml("compose.yaml")["services"]["grafana"]["volumes"]

    assert source["url"] == "http://prometheus:9090"
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == source["type"]
    assert variables["prefix"]["query"].split(",") == ["kilotron", "vllm"]


def test_prometheus_asks_the_server_with_the_key_that_it_gets() -> None:
    (job,) = read_yaml("prometheus.yml")["scrape_configs"]
    services = read_yaml("compose.yaml")["services"]
    (secret,) = services["prometheus"]["secrets"]

    assert job["static_configs"] == [{"targets": ["kilotron:8000"]}]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret['target']}"


def test_files_that_are_mounted_exist_and_ports_are_bound_to_this_machine() -> None:
    compose = read_yaml("compose.yaml")
    for name, service in compose["services"].items():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), f"{name}: {mount}"
        for port in service["ports"]:
            assert "127.0.0.1" in port, f"{name}: {port}"


def test_the_image_is_built_for_a_stranger_who_is_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    (server,) = (read_yaml("compose.yaml")["services"]["kilotron"]["secrets"],)

    assert final.index("\nUSER 10001") < final.index("\nENTRYPOINT")
    assert 'ENTRYPOINT ["kilotron", "serve"]' in final
    assert f"KILOTRON_API_KEY_FILE=/run/secrets/{server[0]['target']}" in final
    assert server[0]["uid"] == "10001"
    for expected in ("EXPOSE 8000", "/health", "KILOTRON_HOST=0.0.0.0"):
        assert expected in final


def test_the_image_has_the_torch_that_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (needed for needed in project["dependencies"] if needed.startswith("torch"))
    assert f"'{torch}'" in (DEPLOY / "Dockerfile").read_text()


def test_what_the_image_is_built_from_is_sent_to_the_builder() -> None:
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == kept
    assert all((ROOT / name).exists() for name in kept)


def test_no_file_holds_a_secret() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"(?i)(password|api_key|token)\s*[:=]\s*[\"']?[\w-]{8,}", path.read_text()), path


def test_the_server_exports_every_metric_of_the_dashboard_before_anything_has_happened() -> None:
    answer = ServiceMetrics().answer("", [], None, RequestLedger(1, 1))
    # The front ends count these.
    answer.counters["http_responses/200"] = 1
    names: dict[str, set[str]] = {}
    for family in ServiceCollector(answer, None, "model").collect():
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    expected = GAUGES | COUNTERS | {f"{name}_bucket": {"le"} for name in HISTOGRAMS}
    for name, labels in expected.items():
        for prefix in ("kilotron",) if name in WITHOUT_ALIAS else ("kilotron", "vllm"):
            assert labels <= names[f"{prefix}:{name}"], name
