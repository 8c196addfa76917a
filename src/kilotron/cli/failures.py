"""From an exception to one line for the user and an exit code: 1 failed while running, 2 wrong usage or request."""

import os
import sys
import traceback

from kilotron.cli.signals import EXIT_INTERRUPTED, Signals
from kilotron.errors import ChatTemplateError, ConfigError, InvalidRequestError, KernelError, KilotronError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BROKEN_PIPE = 141

_USAGE_ERRORS = (ConfigError, KernelError, InvalidRequestError, ChatTemplateError)


class UsageError(KilotronError):
    """The command line asks for something that makes no sense; the message says what to type instead."""


def report_failure(error: BaseException, signals: Signals, *, is_verbose: bool) -> int:
    """Tells the user what happened and returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, KeyboardInterrupt) or signals.num_interrupts:
        # An interrupt in the middle of a step may surface as another error on the way out.
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    if is_verbose:
        traceback.print_exception(error)
    code, message = _explain(error)
    print_error(message)
    return code


def print_error(message: str) -> None:
    """One line on standard error."""
    print(f"kilotron: error: {message}", file=sys.stderr)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, (UsageError, *_USAGE_ERRORS)):
        return EXIT_USAGE, str(error)
    if isinstance(error, KilotronError):
        return EXIT_FAILED, str(error)
    if type(error).__module__.partition(".")[0] == "cyclopts":  # not imported here: it takes a tenth of a second
        command = " ".join(("kilotron", *(getattr(error, "command_chain", None) or ())))
        return EXIT_USAGE, f"{str(error).rstrip()} See {command} --help."
    if isinstance(error, UnicodeDecodeError):
        return EXIT_USAGE, f"the input is not {error.encoding} text: {error.reason} at byte {error.start}"
    if isinstance(error, OSError):
        return EXIT_FAILED, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return EXIT_FAILED, f"{type(error).__name__}: {error} (a fault of kilotron; --verbose shows where)"


def _silence_stdout() -> None:
    """Whoever read our output has left; the interpreter must not complain when it flushes at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = None
