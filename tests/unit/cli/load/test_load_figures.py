"""Tests of the figures of a load test, on outcomes whose figures are known."""

import pytest

from kilotron.cli.load.load_figures import load_figures
from kilotron.cli.load.load_table import load_table
from kilotron.cli.load.request_stream import Outcome

ALL = ("ttft", "tpot", "itl", "e2el")


def outcome(started: float, ttft_s: float, itls_s: list[float], **facts: object) -> Outcome:
    made = Outcome(started=started, input_len=10, output_len=len(itls_s) + 1, ttft_s=ttft_s, itls_s=itls_s)
    made.latency_s = ttft_s + sum(itls_s)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


FAST = outcome(100.0, 0.1, [0.1, 0.3])
SLOW = outcome(100.25, 0.5, [0.2, 0.2])
REFUSED = Outcome(started=100.0, input_len=10, error="full", status=503)


def figures_of(*outcomes: Outcome, goodput: dict[str, float] | None = None) -> dict[str, object]:
    return load_figures(outcomes, 2.0, goodput=goodput or {}, metrics=ALL, percentiles=(50, 99, 99.9))


def test_counts_and_rates_are_those_of_the_successful_requests() -> None:
    figures = figures_of(FAST, SLOW, REFUSED)
    expected = {
        "duration": 2.0, "completed": 2, "failed": 1, "failures": {"http_503": 1}, "total_input_tokens": 20,
        "total_output_tokens": 6, "request_throughput": 1.0, "output_throughput": 3.0, "total_token_throughput": 13.0,
        "request_goodput": None, "max_concurrent_requests": 2,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == expected


def test_spreads_are_in_milliseconds() -> None:
    figures = figures_of(FAST, SLOW)
    assert figures["mean_ttft_ms"] == pytest.approx(300)
    assert figures["std_ttft_ms"] == pytest.approx(200)
    assert figures["p99_ttft_ms"] == pytest.approx(100 + 0.99 * 400)
    assert figures["mean_tpot_ms"] == pytest.approx(200)
    assert figures["median_itl_ms"] == pytest.approx(200)
    assert figures["mean_e2el_ms"] == pytest.approx((500 + 900) / 2)
    assert "p99.9_itl_ms" in figures


def test_goodput_counts_requests_within_all_limits() -> None:
    assert figures_of(FAST, SLOW, REFUSED, goodput={"ttft": 100.001, "tpot": 201})["request_goodput"] == 0.5
    assert figures_of(FAST, SLOW, goodput={"e2el": 100})["request_goodput"] == 0.0


def test_the_peak_rate_is_that_of_the_best_second() -> None:
    assert figures_of(outcome(0.0, 0.9, [0.05, 0.5, 0.01, 0.01]))["max_output_tokens_per_s"] == 3


def test_without_a_success_there_are_zeros() -> None:
    figures = figures_of(REFUSED)
    assert (figures["completed"], figures["mean_ttft_ms"], figures["output_throughput"]) == (0, 0.0, 0.0)


def test_a_single_token_has_no_time_per_output_token() -> None:
    assert figures_of(outcome(0.0, 0.1, []), FAST)["mean_tpot_ms"] == pytest.approx(200)


def test_the_table_has_the_headings_that_people_compare() -> None:
    facts = figures_of(FAST, SLOW, REFUSED, goodput={"ttft": 9999}) | {"max_concurrency": 4, "request_rate": 2.5}
    lines = load_table(facts, ALL, (99,)).splitlines()

    assert lines[0] == "============ Serving Benchmark Result ============"
    assert [line[:40].rstrip() for line in lines if ":" in line] == [
        "Successful requests:", "Failed requests:", "Maximum request concurrency:", "Request rate configured (RPS):",
        "Benchmark duration (s):", "Total input tokens:", "Total generated tokens:", "Request throughput (req/s):",
        "Request goodput (req/s):", "Output token throughput (tok/s):", "Peak output token throughput (tok/s):",
        "Peak concurrent requests:", "Total token throughput (tok/s):",
        *(f"{kind} {name} (ms):" for name in ("TTFT", "TPOT", "ITL", "E2EL") for kind in ("Mean", "Median", "P99")),
    ]  # fmt: skip
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "Mean TTFT (ms):                          300.00    " in lines


def test_rows_that_were_not_asked_for_are_left_out() -> None:
    facts = figures_of(FAST) | {"max_concurrency": None, "request_rate": "inf"}
    table = load_table(facts, ("ttft",), (99,))
    for absent in ("goodput", "Maximum request concurrency", "configured", "TPOT"):
        assert absent not in table
