"""Tests of the start report: its rows, their sum, and that it is told once."""

import re

import pytest

from kilotron.apis.load_phases import LoadPhase, LoadPhases
from kilotron.cli.start_report import LOAD, StartReport
from unit.cli.conftest import Command

PHASES = [
    "Python and the command line", "imports", "checkpoint headers", "tokenizer", "weights read and packed",
    "KV cache set aside", "rest of loading", "first token", "the rest", "in all", "most memory resident",
]  # fmt: skip


def rows_of(text: str) -> dict[str, list[str]]:
    """Phase -> the cells behind it, of the last table in a text."""
    lines = text[text.index("phase  ") :].splitlines()[2:]
    return {cells[0]: cells[1:] for line in lines if (cells := re.split(r"\s{2,}", line.strip()))}


def test_verbose_tells_where_the_time_of_the_start_went(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "hello", "--max-tokens", "2", "--verbose")

    rows = rows_of(outcome.err)
    assert list(rows) == PHASES
    seconds = [float(rows[phase][0]) for phase in PHASES[:-2]]
    assert sum(seconds) == pytest.approx(float(rows["in all"][0]), abs=0.02)


def test_weights_have_bytes_and_a_rate_and_the_cache_has_bytes(command: Command, checkpoint: str) -> None:
    outcome = command("generate", checkpoint, "-p", "hello", "--max-tokens", "2", "--verbose")

    rows = rows_of(outcome.err)
    assert re.fullmatch(r"\d+\.\d+ [KM]iB", rows["weights read and packed"][1])
    assert float(rows["weights read and packed"][2]) >= 0
    assert len(rows["KV cache set aside"]) == 2


def test_without_verbose_nothing_is_told(command: Command, checkpoint: str) -> None:
    assert "phase" not in command("generate", checkpoint, "-p", "hello", "--max-tokens", "2").err


def test_the_table_is_told_once_in_a_chat(command: Command, checkpoint: str) -> None:
    outcome = command("chat", checkpoint, "--max-tokens", "2", "--verbose", stdin="hello\nhello\n")

    assert outcome.err.count("weights read and packed") == 1


def test_only_the_first_mark_of_a_phase_counts() -> None:
    report = StartReport()
    report.mark("first token")
    before = report.describe().splitlines()[2]
    report.mark("first token")

    assert report.describe().splitlines()[2] == before


def test_what_loading_took_beside_its_parts_is_a_row_too() -> None:
    report = StartReport()
    report.mark("imports")
    report.mark(LOAD)
    report.add_load_phases([LoadPhase("weights", 0.5, 10**9, is_transfer=True)])

    rows = rows_of(report.describe())
    assert rows["weights"] == ["0.500", "953.7 MiB", "2.00"]
    assert float(rows["rest of loading"][0]) == pytest.approx(-0.5, abs=0.1)


def test_a_phase_that_fails_is_not_counted() -> None:
    phases = LoadPhases()
    with phases.measure("headers"):
        pass
    with pytest.raises(OSError, match="gone"), phases.measure("weights"):
        raise OSError("gone")

    assert [phase.name for phase in phases.done] == ["headers"]
