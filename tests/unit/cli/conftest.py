"""Commands run inside the test's process: arguments and standard input in, exit code and both outputs back."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kilotron.cli.app import run
from kilotron.kernels.cpu.backend import why_not_native
from unit.cli.tiny_checkpoint import write_tiny_checkpoint


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON lines of its results."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Outcome]


class Terminal(io.StringIO):
    """Text that a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model's folder."""
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KILOTRON_CONFIG", "KILOTRON_VERBOSE", "KILOTRON_MODEL"):
        monkeypatch.delenv(name, raising=False)
    if why_not_native() is not None:  # asked for, it runs without a warning on standard error
        monkeypatch.setenv("KILOTRON_KERNELS", "reference")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `kilotron` with these arguments; `stdin` is a pipe with text in it, or a Terminal."""

    def call(*arguments: str | Path, stdin: str | io.StringIO = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
