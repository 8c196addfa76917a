"""Tests of the real `kilotron` process: exit codes, signals, pipes, terminals, and what is imported when."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.cli.tiny_checkpoint import write_tiny_checkpoint

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = (sys.executable, "-m", "kilotron")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KILOTRON_")} | {
    "PYTHONPATH": str(SOURCE),
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm",
    "NO_COLOR": "1",
}
# Seconds of work for the bundled model, so that there is time to interrupt it.
ENDLESS = ("--ignore-eos", "--max-tokens", "1000", "--temperature", "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


def call(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*PROGRAM, *arguments), input=stdin, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (*PROGRAM, *arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_help_and_version_never_import_torch() -> None:
    commands = ("generate", "chat", "serve", "score", "convert", "inspect", "bench", "env")
    lines = ["--version", "--help", *(f"{command} --help" for command in commands)]
    program = (
        "import sys; from kilotron.cli.app import run\n"
        f"for line in {lines}: assert run(line.split()) == 0, line\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )

    result = subprocess.run(
        (sys.executable, "-c", program), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr


def test_a_wrong_flag_is_told_before_torch_is_imported() -> None:
    program = (
        "import sys; from kilotron.cli.app import run\n"
        "lines = ['generate -p a --temperature 999', 'generate -p a --dtype int3', 'generate --tempature 1']\n"
        "for line in lines: assert run(line.split()) == 2, line\n"
        "assert 'torch' not in sys.modules"
    )

    result = subprocess.run(
        (sys.executable, "-c", program), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr


def test_text_through_a_pipe_is_continued_and_standard_output_is_results_only(checkpoint: str) -> None:
    result = call("generate", checkpoint, "--max-tokens", "3", "--ignore-eos", "-v", stdin="Once\n")

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Once")
    assert "kilotron:" not in result.stdout
    assert "first token" in result.stderr


def test_a_missing_model_is_a_failure_and_an_unknown_flag_a_wrong_use(checkpoint: str) -> None:
    missing = call("generate", "no-such-folder", "-p", "a")
    unknown = call("generate", checkpoint, "--temprature", "1")

    assert (missing.returncode, unknown.returncode) == (1, 2)
    assert missing.stdout == unknown.stdout == ""
    assert missing.stderr.startswith("kilotron: error: ")
    assert "Did you mean --temperature?" in unknown.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_generating_ends_with_its_code_and_no_traceback(number: int, code: int) -> None:
    with start("generate", "-p", "Once upon a time", *ENDLESS) as process:
        assert process.stdout is not None
        process.stdout.read(len("Once upon a time, "))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert "Traceback" not in errors
    assert errors.count("\n") == 1  # which model it is


def test_ctrl_c_while_torch_is_imported_is_as_quiet() -> None:
    with start("generate", "-p", "Once upon a time", *ENDLESS) as process:
        assert process.stderr is not None
        process.stderr.readline()  # printed right before the import
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_error() -> None:
    with start("generate", "-p", "Once upon a time", *ENDLESS) as process:
        assert process.stdout is not None
        process.stdout.read(20)
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()

    assert process.returncode == 141
    assert errors.count("\n") == 1


def test_a_chat_over_a_pipe_answers_each_line() -> None:
    result = call("chat", "--max-tokens", "5", "--ignore-eos", stdin="hello\n/stats\nand now?\n")

    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 2
    assert "5 tokens" in result.stderr


class Terminal:
    """A kilotron process that believes a person sits in front of it."""

    def __init__(self, *arguments: str) -> None:
        self._end, theirs = pty.openpty()
        self._process = subprocess.Popen(
            (*PROGRAM, *arguments), env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._unread = ""

    def read_until(self, expected: str, timeout_s: float = 60) -> str:
        """What came up to and with `expected`."""
        deadline = time.monotonic() + timeout_s
        while expected not in self._unread:
            assert time.monotonic() < deadline, f"no {expected!r} in {self._unread!r}"
            if select.select([self._end], [], [], 0.1)[0]:
                self._unread += os.read(self._end, 4096).decode(errors="replace")
        before, _, self._unread = self._unread.partition(expected)
        return before + expected

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def press_ctrl_c(self) -> None:
        # Between writing its prompt and waiting for a key readline does not look for signals; no person is so quick.
        time.sleep(0.5)
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """The exit code."""
        code = self._process.wait(timeout=60)
        os.close(self._end)
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def chat_terminal() -> Iterator[Terminal]:
    terminal = Terminal("chat", "--ignore-eos", "--temperature", "0")
    terminal.read_until("> ")
    yield terminal
    terminal.kill()


def test_ctrl_c_stops_an_answer_and_not_the_chat(chat_terminal: Terminal) -> None:
    chat_terminal.type("Tell me a story.\n")
    chat_terminal.read_until("story.")
    chat_terminal.read_until("a")
    chat_terminal.press_ctrl_c()
    chat_terminal.read_until("(stopped)")
    chat_terminal.read_until("> ")

    chat_terminal.type("/stats\n")
    chat_terminal.read_until("last answer")
    chat_terminal.read_until("> ")
    chat_terminal.press_ctrl_c()
    chat_terminal.read_until("Ctrl-C again")
    chat_terminal.read_until("> ")
    chat_terminal.type("\x04")

    assert chat_terminal.wait() == 0


def test_ctrl_c_twice_at_the_prompt_ends_the_chat(chat_terminal: Terminal) -> None:
    chat_terminal.press_ctrl_c()
    chat_terminal.read_until("Ctrl-C again")
    chat_terminal.read_until("> ")
    chat_terminal.press_ctrl_c()

    assert chat_terminal.wait() == 130


def test_a_terminal_without_a_prompt_is_told_what_to_type(checkpoint: str) -> None:
    terminal = Terminal("generate", checkpoint)
    terminal.read_until('kilotron generate -p "Once upon a time"')

    assert terminal.wait() == 2
