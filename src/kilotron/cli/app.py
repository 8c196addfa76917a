"""The `kilotron` command: its subcommands by name, the configuration file, and the way from arguments to an exit code.

A command's module is imported when that command is asked for, and torch only when the command runs.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kilotron.cli.failures import UsageError, report_failure
from kilotron.cli.signals import Signals

if TYPE_CHECKING:
    from cyclopts import App

HELP = "Runs large language models from Hugging Face and Megatron checkpoints, with nothing but a CPU."

EPILOGUE = """\
Try:
  kilotron generate -p "Once upon a time"   the bundled model: no download
  kilotron chat Qwen/Qwen3-0.6B             a hub id, or a checkpoint folder
  kilotron serve ./checkpoint               an OpenAI-compatible server
  kilotron COMMAND --help                   flags and examples of a command

Every flag is also an environment variable (--top-p: KILOTRON_TOP_P) and a key
of a --config file (toml, yaml, json). The command line beats the environment,
which beats the file.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted.
"""

COMMAND_EPILOGUE = """\
Every flag is also an environment variable (--top-p: KILOTRON_TOP_P) and a key
of a --config file."""

# name -> module:function in this package, and the first line of its docstring: listing commands imports none of them.
COMMANDS = {
    "generate": ("generate:generate", "Continue one prompt or many."),
    "chat": ("chat:chat", "Talk with a model."),
    "serve": ("serve:serve", "An OpenAI-compatible HTTP server."),
    "score": ("score:score", "Log-probabilities and perplexity of texts."),
    "convert": ("convert:convert", "Megatron checkpoints to Hugging Face's, and back."),
    "inspect": ("inspect:inspect", "What is in a checkpoint: no weight is read."),
    "bench throughput": ("bench:throughput", "Many random prompts at once: requests and tokens per second."),
    "bench latency": ("bench:latency", "One prompt at a time: time to the first token and per token."),
    "bench serve": ("bench_serve:serve", "Load on a running server: throughput and latencies, as vLLM tells them."),
    "bench kernels": ("bench_kernels:kernels", "Each kernel operation's time against its roofline: no model needed."),
    "env": ("env:env", "Versions, machine and caches, for a bug report."),
}


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code; whatever happens is told in one line."""
    with Signals() as signals:
        try:
            code = _dispatch(list(arguments))
            sys.stdout.flush()
        except BaseException as error:
            code = report_failure(error, signals, is_verbose=_is_verbose(arguments))
    return code


def package_version() -> str:
    """The installed version."""
    from importlib.metadata import PackageNotFoundError, version  # takes as long as all else here together

    try:
        return version("kilotron")
    except PackageNotFoundError:
        return "not installed (run from a source folder)"


def build_app(arguments: Sequence[str] = (), config_file: str | None = None) -> "App":
    """The command tree, made for these arguments.

    Args:
        arguments: those of the command line.
        config_file: gives flags that neither the command line nor the environment gives.
    """
    from cyclopts import App
    from cyclopts.config import Env

    app = App(
        name="kilotron",
        help=HELP,
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=package_version,
        config=(environment := Env("KILOTRON_", command=False, show=False)),
        result_action="return_value",
    )
    bench = App(
        name="bench",
        help="Measure a model or the kernels on this machine, or a server.",
        help_epilogue=COMMAND_EPILOGUE,
        sort_key=3,
    )
    for rank, (name, (target, summary)) in enumerate(COMMANDS.items()):
        group, _, last = name.rpartition(" ")
        owner = bench if group else app
        is_asked_for = list(arguments[: name.count(" ") + 1]) == name.split()  # then its whole docstring is its help
        shown = None if is_asked_for else summary
        owner.command(f"kilotron.cli.{target}", name=last, help=shown, help_epilogue=COMMAND_EPILOGUE, sort_key=rank)
    app.command(bench)
    if config_file is not None:
        from kilotron.cli.config_file import file_sources

        app.config = (environment, *file_sources(Path(config_file), app, COMMANDS))
    return app


def _dispatch(arguments: list[str]) -> int:
    if arguments == ["--version"]:  # half of the time of a full start
        print(package_version())
        return 0
    app = build_app(arguments, _config_file(arguments))
    result = app(arguments, exit_on_error=False, print_error=False)
    return result if isinstance(result, int) else 0


def _config_file(arguments: list[str]) -> str | None:
    """The value of --config, which must be known before all others."""
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config":
            if index + 1 == len(arguments):
                raise UsageError("--config needs a file: --config kilotron.toml")
            return arguments[index + 1]
    return os.environ.get("KILOTRON_CONFIG") or None


def _is_verbose(arguments: Sequence[str]) -> bool:
    return "--verbose" in arguments or "-v" in arguments or os.environ.get("KILOTRON_VERBOSE", "0") not in ("", "0")
