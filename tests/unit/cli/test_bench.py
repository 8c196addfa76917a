"""Tests of `kilotron bench`: what is measured and how it is told, not how fast it is."""

import pytest

from kilotron.cli.bench import spread_of
from unit.cli.conftest import Command

SMALL = ("--input-len", "8", "--output-len", "4")


def test_throughput_reports_rates_and_percentiles(command: Command, checkpoint: str) -> None:
    result = command("bench", "throughput", checkpoint, "--num-prompts", "3", *SMALL, "--json").objects[0]

    assert result["num_prompts"] == 3
    assert result["prompt_tokens_per_s"] == pytest.approx(2 * result["output_tokens_per_s"])
    assert result["requests_per_s"] * result["wall_s"] == pytest.approx(3)
    assert set(result["time_to_first_token_ms"]) == {"p50", "p90", "p99"}


def test_latency_reports_medians_of_single_prompts(command: Command, checkpoint: str) -> None:
    outcome = command("bench", "latency", checkpoint, "--num-repeats", "2", *SMALL)

    assert outcome.code == 0
    assert "time_to_first_token_ms" in outcome.out
    assert "time_per_output_token_ms" in outcome.out


def test_lengths_beyond_the_context_are_refused(command: Command, checkpoint: str) -> None:
    outcome = command("bench", "latency", checkpoint, "--input-len", "500")

    assert outcome.code == 2
    assert "context length" in outcome.err


def test_nothing_to_measure_is_refused_before_the_model_is_loaded(command: Command) -> None:
    outcome = command("bench", "throughput", "nowhere", "--num-prompts", "0")

    assert outcome.code == 2
    assert "--num-prompts must be at least 1" in outcome.err


def test_percentiles_lie_between_neighbours() -> None:
    assert spread_of([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": pytest.approx(2.8), "p99": pytest.approx(2.98)}
