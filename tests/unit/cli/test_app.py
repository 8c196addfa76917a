"""Tests of the command as a whole: help, versions, unknown words, and from exceptions to exit codes."""

import pytest

from kilotron.cli.app import COMMANDS
from kilotron.cli.failures import UsageError, report_failure
from kilotron.cli.output import dim, format_bytes, format_table
from kilotron.cli.signals import Signals
from kilotron.errors import BrokenCheckpointError, ConfigError, EngineClosedError
from unit.cli.conftest import Command, Terminal


def test_help_names_the_commands_and_what_to_type_first(command: Command) -> None:
    outcome = command("--help")

    assert outcome.code == 0
    for expected in ("generate", "chat", "score", "bench", "env", 'kilotron generate -p "Once upon a time"'):
        assert expected in outcome.out


def test_a_commands_help_shows_flags_and_examples(command: Command) -> None:
    outcome = command("generate", "--help")

    for expected in ("--max-tokens", "--max-num-batched-tokens", "--prompt-file", "kilotron generate -p", "KILOTRON_"):
        assert expected in outcome.out


@pytest.mark.parametrize(("name", "summary"), [(name, entry[1]) for name, entry in COMMANDS.items()])
def test_the_list_of_commands_says_what_their_docstrings_say(command: Command, name: str, summary: str) -> None:
    assert summary in command(*name.split(), "--help").out


@pytest.mark.parametrize("arguments", [(), ("bench",)])
def test_without_a_command_the_help_is_shown(command: Command, arguments: tuple[str, ...]) -> None:
    outcome = command(*arguments)

    assert outcome.code == 0
    assert "Usage: kilotron" in outcome.out


def test_an_unknown_command_is_met_with_the_nearest_one(command: Command) -> None:
    outcome = command("gennerate")

    assert outcome.code == 2
    assert 'Did you mean "generate"?' in outcome.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (ConfigError("x"), 2),
        (BrokenCheckpointError("x"), 1),
        (EngineClosedError("x"), 1),
        (OSError("x"), 1),
        (ZeroDivisionError("x"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
    ],
)
def test_each_failure_has_its_exit_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_failure(error, Signals(), is_verbose=False) == code
    assert capsys.readouterr().err.count("\n") == (code in (1, 2))


def test_an_error_on_the_way_out_of_an_interrupt_is_the_interrupt() -> None:
    signals = Signals()
    signals.num_interrupts = 1

    assert report_failure(KeyError("half a step"), signals, is_verbose=False) == 130


def test_the_traceback_is_for_verbose_only(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("x")
    except ZeroDivisionError as error:
        report_failure(error, Signals(), is_verbose=True)
        assert "Traceback" in capsys.readouterr().err
        report_failure(error, Signals(), is_verbose=False)
        assert "Traceback" not in capsys.readouterr().err


def test_tables_align_their_columns() -> None:
    assert format_table([("a", 1), ("bb", 22)], ("n", "v"), right=(1,)) == "n    v\n--  --\na    1\nbb  22"


def test_sizes_read_well() -> None:
    assert [format_bytes(size) for size in (5, 2048, 3 << 30, 5 << 40)] == ["5 B", "2.0 KiB", "3.0 GiB", "5.0 TiB"]


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert dim("x", Terminal()) == "\x1b[2mx\x1b[0m"

    monkeypatch.setenv("NO_COLOR", "1")
    assert dim("x", Terminal()) == "x"
