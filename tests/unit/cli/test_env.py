"""Tests of `kilotron env`."""

import pytest

from unit.cli.conftest import Command


def test_versions_machine_and_caches_are_told(command: Command) -> None:
    outcome = command("env")

    for expected in ("python", "torch", "cores", "instruction_sets", "total", "reference", "models"):
        assert expected in outcome.out


def test_no_secret_is_shown(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("KILOTRON_API_KEY", "sk_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pw_secret@mirror.example")
    monkeypatch.setenv("KILOTRON_MAX_TOKENS", "17")

    outcome = command("env", "--json")

    assert "secret" not in outcome.out
    variables = outcome.objects[0]["variables"]
    assert variables["HF_TOKEN"] == "(set, not shown)"
    assert variables["KILOTRON_MAX_TOKENS"] == "17"
