"""Tests of `kilotron score`."""

import json
import math

import pytest

from unit.cli.conftest import Command


def test_a_table_shows_tokens_sum_mean_and_perplexity(command: Command, checkpoint: str) -> None:
    outcome = command("score", checkpoint, "-p", "abc")

    lines = outcome.out.splitlines()
    assert lines[0].split() == ["place", "id", "logprob", "token"]
    assert lines[2].split()[2:] == ["-", "'a'"]
    assert len(lines) == 6
    assert "perplexity" in lines[-1]


def test_json_carries_every_log_probability(command: Command, checkpoint: str) -> None:
    result = command("score", checkpoint, "-p", "abc", "--json", "--top", "2").objects[0]

    log_probs = [token["logprob"] for token in result["tokens"]]
    assert log_probs[0] is None
    assert result["sum_logprob"] == pytest.approx(sum(log_probs[1:]))
    assert result["perplexity"] == pytest.approx(math.exp(-result["mean_logprob"]))
    assert len(result["tokens"][1]["top"]) >= 2


def test_scoring_gives_back_what_generating_said(command: Command, checkpoint: str) -> None:
    generated = command(
        "generate", checkpoint, "--prompt-ids", "1,2,3", "--max-tokens", "6", "--logprobs", "0", "--json", "--seed", "3"
    ).objects[0]
    ids = generated["prompt_token_ids"] + generated["token_ids"]

    scored = command("score", checkpoint, "--prompt-ids", json.dumps(ids), "--json").objects[0]

    said = [token["logprob"] for token in generated["logprobs"]]
    assert [token["logprob"] for token in scored["tokens"][-len(said) :]] == said


def test_several_texts_are_told_apart(command: Command, checkpoint: str) -> None:
    outcome = command("score", checkpoint, "-p", "ab", "-p", "c")

    assert "=== prompt 1 ===" in outcome.out
    assert "=== prompt 2 ===" in outcome.out
    assert "a single token has no log-probability" in outcome.out


def test_sampling_fields_have_no_place_in_scoring(command: Command, checkpoint: str) -> None:
    outcome = command("score", checkpoint, "-f", "-", stdin='{"prompt": "a", "temperature": 1}')

    assert outcome.code == 2
    assert "temperature" in outcome.err
