"""`kilotron serve`: an OpenAI-compatible HTTP server with engines behind it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kilotron.apis.process_configs import LogConfig
from kilotron.apis.process_log import log_to_stderr
from kilotron.apis.server_extra import require_server_extra
from kilotron.cli.loaded_model import check_model_name
from kilotron.cli.options import ENGINE, RUN, EngineOptions, Model, RunOptions
from kilotron.cli.output import format_bytes, format_table
from kilotron.cli.sampling_layers import describe_sampling
from kilotron.cli.serve_options import (
    LISTEN,
    LOAD,
    SAFETY,
    ListenOptions,
    LoadOptions,
    SafetyOptions,
    to_serve_config,
)
from kilotron.cli.start_report import process_age_s
from kilotron.coordinator.supervision.child_output import STDERR_FD, write_line
from kilotron.coordinator.supervision.parent_link import ChildStatus
from kilotron.coordinator.supervision.supervisor import SupervisorEvents
from kilotron.sampling_params import SamplingParams

_log = logging.getLogger(__name__)

_BUNDLED = "no MODEL given, serving the bundled tiny model (a toy; give a checkpoint folder or a hub id for a real one)"
# Lengths for which people want to know how many requests fit.
_EXAMPLE_LENGTHS = (1024, 8192, 32768)


def serve(
    model: Model = None,
    /,
    *,
    run: RunOptions = RUN,
    listen: ListenOptions = LISTEN,
    safety: SafetyOptions = SAFETY,
    load: LoadOptions = LOAD,
    engine: EngineOptions = ENGINE,
) -> int:
    """An OpenAI-compatible HTTP server.

    The port is open at once and answers 503 until the model is loaded. SIGTERM
    or Ctrl-C lets running requests finish; a second one ends everything now.
    What dies is started again.

    Try:
      kilotron serve
      kilotron serve ./checkpoint --port 9000 -dp 2
      KILOTRON_API_KEY=secret kilotron serve Qwen/Qwen3-0.6B --host 0.0.0.0
      curl localhost:8000/v1/completions -H 'content-type: application/json' \\
        -d '{"prompt": "Once upon a time", "max_tokens": 20}'
      kilotron chat --url http://localhost:8000
    """
    require_server_extra()
    from kilotron.apis.service import run_service

    check_model_name(model)
    config = to_serve_config(listen, safety, load)
    options = engine.to_config()
    tell: Callable[[str], None] = _tell
    if config.log_format == "json":
        log_to_stderr(LogConfig(format="json"), "supervisor")
        tell = _log.info
    if model is None:
        tell(_BUNDLED)

    def make_events(url: str, names: list[str]) -> SupervisorEvents:
        tell(f"listening at {url}; loading")
        return _ServeEvents(url, names, tell, has_tables=tell is _tell, is_verbose=run.verbose)

    end = run_service(model, engine.tokenizer, options, config, make_events)
    if end.error:
        tell(f"error: {end.error}")
    return end.exit_code


def _tell(message: str) -> None:
    """One line on standard error, whose reader may be gone or stalled: that must not end or stop a server."""
    write_line(STDERR_FD, f"kilotron: {message}")


class _ServeEvents(SupervisorEvents):
    """Tells people how the start goes, and of deaths and restarts."""

    def __init__(
        self, url: str, names: list[str], tell: Callable[[str], None], *, has_tables: bool, is_verbose: bool
    ) -> None:
        self._url = url
        self._tell = tell
        self._unready = set(names)
        self._has_tables = has_tables
        self._is_verbose = is_verbose
        self._details: dict[str, Any] = {}
        self._ready_at: dict[str, float] = {}
        self._is_told = False

    def on_status(self, name: str, status: ChildStatus) -> None:
        """Keeps what the first engine says of itself."""
        if status.state == "ready":
            self._ready_at.setdefault(name, process_age_s())
            self._details = self._details or status.details

    def on_ready(self, name: str) -> None:
        """Reports when the last process is ready."""
        self._unready.discard(name)
        if not self._unready and not self._is_told:
            self._is_told = True
            self._report()

    def on_exit(self, name: str, why: str) -> None:
        """Tells of a death."""
        self._unready.add(name)
        if not why.startswith("exited with code 0"):  # which is how they end when they are asked to
            self._tell(f"{name} {why}")

    def on_restart(self, name: str, delay_s: float) -> None:
        """Tells of a restart."""
        self._tell(f"{name} starts again in {delay_s:g} s")

    def _report(self) -> None:
        details = self._details
        if self._has_tables:
            self._print_tables(details)
        self._tell(f"sampling defaults of {details['model']}: {describe_sampling(_params(details))}")
        self._tell(f"KV cache of each engine: {format_bytes(details['kv_cache_bytes'])}, {_describe_room(details)}")
        places = f"API: {self._url}/v1, metrics: {self._url}/metrics"
        self._tell(f"ready after {process_age_s():.1f} s at {self._url}  ({places})")

    def _print_tables(self, details: dict[str, Any]) -> None:
        if self._is_verbose:
            rows = [*details["decisions"], ("kernels", details["kernels"], "")]
            _tell_table(rows, ("option", "value", "why"))
        phases = [(f"engine: {name}", f"{seconds:.3f}") for name, seconds, _ in details["load_phases"]]
        phases += [(f"{name} ready, since the command", f"{seconds:.3f}") for name, seconds in self._ready_at.items()]
        _tell_table(phases, ("phase", "seconds"), right=(1,))
        memory = [(name, format_bytes(num_bytes)) for name, num_bytes in details["memory"]]
        _tell_table(memory, ("memory of an engine", "bytes"), right=(1,))


def _tell_table(rows: Iterable[Sequence[object]], header: Sequence[str], *, right: Sequence[int] = ()) -> None:
    for line in format_table(rows, header, right=right).splitlines():
        write_line(STDERR_FD, line)


def _params(details: dict[str, Any]) -> SamplingParams:
    return SamplingParams.from_dict(details["default_sampling"])


def _describe_room(details: dict[str, Any]) -> str:
    """How many requests of which lengths run at once."""
    longest, tokens, most = details["max_sequence_length"], details["num_kv_tokens"], details["max_requests"]
    lengths = [length for length in _EXAMPLE_LENGTHS if length < longest] + [longest]
    rooms = [f"{min(tokens // length, most)} requests of {length}" for length in lengths]
    return f"{tokens} tokens: {', '.join(rooms)} tokens at once"
