"""Opens a model for a command: says which one, shows the loading; with --verbose what was decided, and the times."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilotron.apis.collector_pause import collector_paused
from kilotron.checkpoints.read_ahead import start_reading_ahead
from kilotron.cli.failures import UsageError
from kilotron.cli.options import EngineOptions, RunOptions
from kilotron.cli.output import format_table, note
from kilotron.cli.profile_summary import describe_profile
from kilotron.cli.sampling_layers import describe_sampling, merge_sampling
from kilotron.cli.signals import leaving_at_once
from kilotron.cli.start_report import LOAD, StartReport
from kilotron.sampling_params import SamplingParams
from kilotron.trace import check_writable

if TYPE_CHECKING:
    from kilotron.apis.llm import MegatronLLM

_ADVICE = "a toy; give a checkpoint folder or a hub id for a real one"


class LoadedModel:
    """An open model and what its command knows about it."""

    def __init__(self, llm: "MegatronLLM", name: str, run: RunOptions, report: StartReport | None) -> None:
        self.llm = llm
        self.name = name
        self.run = run
        self._report = report

    def sampling_params(self, *layers: Mapping[str, Any]) -> SamplingParams:
        """The model's own sampling defaults, overridden by each layer in turn.

        Raises:
            SamplingParamsError: together they make no sense.
        """
        return merge_sampling(self.llm.default_sampling_params, *layers)

    def mark(self, phase: str) -> None:
        """Notes the end of a phase, when somebody wants to know."""
        if self._report is not None:
            self._report.mark(phase)

    def tell_times(self) -> None:
        """Says where the time went, when somebody wants to know."""
        if self._report is not None:
            self._report.tell()


def check_model_name(model: str | None) -> None:
    """Catches a prompt in MODEL's place.

    Raises:
        UsageError: it cannot be a model.
    """
    if model is not None and any(letter.isspace() for letter in model) and not Path(model).exists():
        raise UsageError(
            f"{model!r} is no model; the first argument is MODEL, and a prompt goes after -p: -p {model!r}"
        )


@contextmanager
def open_model(model: str | None, engine: EngineOptions, run: RunOptions) -> Iterator[LoadedModel]:
    """Loads a model and frees it in the end.

    Raises:
        KilotronError: options or checkpoint are wrong.
    """
    config = engine.to_config()
    if config.profile is not None:
        check_writable(config.profile)
    report = StartReport() if run.verbose else None
    if report is not None:
        report.mark("Python and the command line")
    if model is None:
        if config.num_threads is None:
            # Its matrices are too small to share; on a busy machine, threads that wait for each other cost far more.
            config = replace(config, num_threads=1)
        note(f"no MODEL given, using the bundled tiny model ({_ADVICE})")
    else:
        start_reading_ahead(sorted(Path(model).expanduser().glob("*.safetensors")))
    with collector_paused(), leaving_at_once():
        from kilotron.apis.llm import MegatronLLM
        from kilotron.apis.progress import LoadProgressBar
    if report is not None:
        report.mark("imports")
    with _warnings_on_stderr(is_verbose=run.verbose):
        with LoadProgressBar(is_wanted=run.progress) as bar:
            llm = MegatronLLM(model, engine.tokenizer, inference_config=config, on_progress=bar.update)
        with _told_at_the_end(llm), llm:
            loaded = LoadedModel(llm, model or "bundled", run, report)
            loaded.mark(LOAD)
            if report is not None:
                report.add_load_phases(llm.load_phases)
                _tell_decisions(llm)
            yield loaded


@contextmanager
def _told_at_the_end(llm: "MegatronLLM") -> Iterator[None]:
    """Tells the summary of a profile, also of a command that was interrupted or failed."""
    try:
        yield
    finally:
        if llm.trace is not None:
            print(describe_profile(llm.trace), file=sys.stderr)


def _tell_decisions(llm: "MegatronLLM") -> None:
    rows = [*llm.config.describe(), ("kernels", llm.kernels_name, "")]
    print(format_table(rows, ("option", "value", "why")), file=sys.stderr)
    note(f"sampling defaults of the model: {describe_sampling(llm.default_sampling_params)}")


@contextmanager
def _warnings_on_stderr(*, is_verbose: bool) -> Iterator[None]:
    handler = logging.StreamHandler()
    if not is_verbose:
        handler.setFormatter(_OneLine())
    logger = logging.getLogger("kilotron")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _OneLine(logging.Formatter):
    """A log line without its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return f"kilotron: {record.levelname.lower()}: {record.getMessage()}"
