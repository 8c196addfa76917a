"""`kilotron bench serve`: load on any OpenAI-compatible server, with the options and the results of vLLM's."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kilotron.cli.bench import Json
from kilotron.cli.failures import EXIT_FAILED, UsageError
from kilotron.cli.load.load_options import (
    PACE,
    RESULT,
    TARGET,
    WORKLOAD,
    PaceOptions,
    ResultOptions,
    TargetOptions,
    WorkloadOptions,
)
from kilotron.cli.options import RUN, RunOptions
from kilotron.cli.output import note, print_json

if TYPE_CHECKING:
    from kilotron.cli.load.request_stream import Outcome
    from kilotron.cli.load.request_writer import RequestWriter
    from kilotron.cli.remote.server_session import ServerSession

_LEAST_VOCABULARY = 256  # so many ids has every vocabulary
_NO_IDS = (400, 422)
_BAR_DELAY_S = 1.0


def serve(
    *,
    target: TargetOptions = TARGET,
    workload: WorkloadOptions = WORKLOAD,
    pace: PaceOptions = PACE,
    result: ResultOptions = RESULT,
    json: Json = False,
    run: RunOptions = RUN,
) -> int:
    """Load on a running server: throughput and latencies, as vLLM tells them.

    Times are those of a client: the first token is the first chunk with a
    choice. A request that is refused counts as failed and is not tried again.

    Try:
      kilotron bench serve --num-prompts 200 --request-rate 10 --ignore-eos
      kilotron bench serve --url http://host:8000 --goodput ttft:500 tpot:50
      kilotron bench serve --backend openai-chat --dataset-name custom
        --dataset-path prompts.jsonl --max-concurrency 8 --save-result out.json
    """
    from kilotron.cli.load.load_figures import load_figures
    from kilotron.cli.load.load_table import load_table

    backend = target.backend_name()
    limits_ms, metrics, percentiles = result.limits_ms(), result.metrics(), result.percentiles()
    workload.check()
    pace.check()
    _check_writable(result.save_result)
    model, outcomes, duration_s = _measure(target, backend, workload, pace, is_bar_wanted=run.progress)
    facts = _facts(backend, model, workload, pace) | load_figures(
        outcomes, duration_s, goodput=limits_ms, metrics=metrics, percentiles=percentiles
    )
    _tell_doubts(facts, outcomes)
    details = _details(outcomes) if result.save_detailed else {}
    if result.save_result is not None:
        _save(result.save_result, facts | details)
    if json:
        print_json(facts | details)
    else:
        print(load_table(facts, metrics, percentiles))
    return 0 if facts["completed"] else EXIT_FAILED


def _measure(
    target: TargetOptions, backend: str, workload: WorkloadOptions, pace: PaceOptions, *, is_bar_wanted: bool | None
) -> "tuple[str, list[Outcome], float]":
    from kilotron.cli.load.load_run import Pace, run_load
    from kilotron.cli.load.request_writer import RequestWriter
    from kilotron.cli.remote.http_exchange import Connector
    from kilotron.cli.remote.server_error import ServerError
    from kilotron.cli.remote.server_session import ServerSession

    address = target.address()
    connector = Connector(address)
    as_sent = Pace(
        request_rate=pace.request_rate,
        burstiness=pace.burstiness,
        max_concurrency=pace.max_concurrency,
        timeout_s=pace.timeout,
    )
    one_by_one = Pace(request_rate=math.inf, burstiness=1.0, max_concurrency=1, timeout_s=pace.timeout)
    with ServerSession(address) as session:
        model = target.model or session.first_model()
        writer = RequestWriter(backend, model, ignores_eos=workload.ignore_eos)
        vocab_size = _usable_vocabulary(session, writer) if workload.dataset_path is None else None
    requests = workload.requests(workload.num_prompts + pace.num_warmups, vocab_size)
    ready = [writer.write(connector, request) for request in requests]
    counted, warmups = ready[: workload.num_prompts], ready[workload.num_prompts :]
    for outcome in run_load(connector, warmups, one_by_one, workload.seed, lambda: None)[0]:
        if outcome.error:
            raise ServerError(f"the first request failed already, so there is nothing to measure: {outcome.error}")
    with _ProgressBar(len(counted), is_wanted=is_bar_wanted) as bar:
        outcomes, duration_s = run_load(connector, counted, as_sent, workload.seed, bar.step)
    return model, outcomes, duration_s


def _usable_vocabulary(session: "ServerSession", writer: "RequestWriter") -> int | None:
    """The range of token ids for random prompts; None when the server wants texts."""
    from kilotron.cli.load.workload import LoadRequest
    from kilotron.cli.remote.server_error import ServerError

    if writer.is_chat:
        return None
    vocab_size = session.vocab_size() or _LEAST_VOCABULARY
    probe = LoadRequest([vocab_size - 1], 1, 1)
    try:
        for _ in session.stream(writer.path, writer.fields(probe), is_stopped=bool):
            pass
    except ServerError as error:
        if error.status not in _NO_IDS:
            raise
        note(f"the server takes no token ids ({error}); random prompts are words, about a token each")
        return None
    return vocab_size


def _facts(backend: str, model: str, workload: WorkloadOptions, pace: PaceOptions) -> dict[str, Any]:
    """What was measured, so that the figures mean something later."""
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": backend,
        "model_id": model,
        "dataset_name": workload.dataset_name,
        "num_prompts": workload.num_prompts,
        "seed": workload.seed,
        "request_rate": pace.request_rate if math.isfinite(pace.request_rate) else "inf",
        "burstiness": pace.burstiness,
        "max_concurrency": pace.max_concurrency,
    }


def _details(outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    """A list for each fact, an entry for each request, times in seconds."""
    return {
        "input_lens": [outcome.input_len for outcome in outcomes],
        "output_lens": [outcome.output_len for outcome in outcomes],
        "start_times": [outcome.started for outcome in outcomes],
        "ttfts": [outcome.ttft_s for outcome in outcomes],
        "itls": [outcome.itls_s for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }


def _tell_doubts(facts: dict[str, Any], outcomes: "Sequence[Outcome]") -> None:
    for reason, count in facts["failures"].items():
        note(f"{count} of {len(outcomes)} requests failed: {reason}")
    if any(not outcome.error and not outcome.is_counted for outcome in outcomes):
        note("the server did not say how many tokens it made; chunks were counted, and prompts estimated")


def _check_writable(path: Path | None) -> None:
    """A result that cannot be written should be known before it is measured."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"--save-result {path}: there is no folder {path.parent}")


def _save(path: Path, result: dict[str, Any]) -> None:
    import json

    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


class _ProgressBar:
    """Finished requests, once it has gone on for a moment."""

    def __init__(self, total: int, *, is_wanted: bool | None) -> None:
        self._total = total
        self._is_wanted = sys.stderr.isatty() if is_wanted is None else is_wanted
        self._started = time.monotonic()
        self._num_finished = 0
        self._bar: Any = None

    def step(self) -> None:
        """Another request has finished."""
        self._num_finished += 1
        elapsed_s = time.monotonic() - self._started
        if not self._is_wanted or elapsed_s < _BAR_DELAY_S:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="request", dynamic_ncols=True, leave=False, file=sys.stderr)
            self._bar.start_t -= elapsed_s
        self._bar.update(self._num_finished - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
