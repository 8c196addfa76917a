"""The flags of `kilotron bench serve`: which server, what is asked, how fast, and what is told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from kilotron.cli.bench import check_positive
from kilotron.cli.failures import UsageError
from kilotron.cli.options import OUTPUT_GROUP, PROMPT_GROUP, TEXT, flag, switch

if TYPE_CHECKING:
    from kilotron.cli.load.workload import LoadRequest
    from kilotron.cli.remote.server_address import ServerAddress

PATHS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_METRICS = ("ttft", "tpot", "itl", "e2el")
_GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@Parameter(name="*", group=Group("Target", sort_key=0))
@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The server, and which of its endpoints."""

    url: Annotated[
        str | None, flag("Server, with or without /v1; by default of --host and --port.", "--url", "--base-url")
    ] = None
    host: Annotated[str, flag("Server's name or address.")] = "127.0.0.1"
    port: Annotated[int, flag("Server's port.")] = 8000
    backend: Annotated[
        Literal["openai", "openai-chat"] | None, flag("Completions or chat; by default as --endpoint says.")
    ] = None
    endpoint: Annotated[
        Literal["/v1/completions", "/v1/chat/completions"] | None, flag("By default as --backend says: completions.")
    ] = None
    model: Annotated[str | None, flag("Model's id; by default the server's first one.", "--model", "-m")] = None
    api_key_file: Annotated[
        Path | None, flag("File with the server's key; by default KILOTRON_API_KEY, else OPENAI_API_KEY.")
    ] = None

    def backend_name(self) -> str:
        """openai or openai-chat.

        Raises:
            UsageError: backend and endpoint contradict each other.
        """
        of_endpoint = next((name for name, path in PATHS.items() if path == self.endpoint), None)
        if None not in (self.backend, of_endpoint) and self.backend != of_endpoint:
            raise UsageError(f"--endpoint {self.endpoint} is that of --backend {of_endpoint}, not of {self.backend}")
        return self.backend or of_endpoint or "openai"

    def address(self) -> "ServerAddress":
        """Where the server is.

        Raises:
            UsageError: URL or key cannot be used.
        """
        from kilotron.cli.remote.server_address import server_address

        host = f"[{self.host}]" if ":" in self.host else self.host
        return server_address(self.url or f"http://{host}:{self.port}", self.api_key_file)


@Parameter(name="*", group=PROMPT_GROUP)
@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What is asked."""

    dataset_name: Annotated[
        Literal["random", "custom", "sharegpt"],
        flag('Random prompts, a .jsonl file with "prompt" per line, or a file in ShareGPT\'s format.'),
    ] = "random"
    dataset_path: Annotated[Path | None, flag("The file.")] = None
    num_prompts: Annotated[int, flag("Requests that count.")] = 100
    random_input_len: Annotated[int, flag("Tokens of a random prompt.")] = 128
    random_output_len: Annotated[int, flag("Tokens of its answer.")] = 64
    random_range_ratio: Annotated[float, flag("Both lengths vary by this share, 0 up to 1.")] = 0.0
    output_len: Annotated[
        int | None,
        flag(
            "Tokens of an answer to a file's prompt; by default the file's.",
            "--output-len",
            "--custom-output-len",
            "--sharegpt-output-len",
        ),
    ] = None
    ignore_eos: Annotated[bool, switch("Answers go on past the model's end of text, to their full length.")] = False
    seed: Annotated[int, flag("Draws prompts and arrivals: same seed, same load.")] = 0

    def check(self) -> None:
        """Raises:
        UsageError: a value is out of range.
        """
        check_positive(
            num_prompts=self.num_prompts,
            random_input_len=self.random_input_len,
            random_output_len=self.random_output_len,
            output_len=1 if self.output_len is None else self.output_len,
        )
        if not 0 <= self.random_range_ratio < 1:
            raise UsageError(f"--random-range-ratio must be at least 0 and less than 1, not {self.random_range_ratio}")
        if (self.dataset_name == "random") != (self.dataset_path is None):
            raise UsageError("--dataset-path belongs to --dataset-name custom or sharegpt, and they need it")

    def requests(self, count: int, vocab_size: int | None) -> "list[LoadRequest]":
        """So many prompts; random ones are of words when `vocab_size` is None."""
        from kilotron.cli.load import workload

        if self.dataset_path is None:
            lengths = workload.RandomLengths(
                input_len=self.random_input_len,
                output_len=self.random_output_len,
                range_ratio=self.random_range_ratio,
            )
            return workload.random_requests(count, lengths, vocab_size, self.seed)
        read = workload.custom_requests if self.dataset_name == "custom" else workload.sharegpt_requests
        return read(count, self.dataset_path, self.output_len, self.seed)


@Parameter(name="*", group=Group("Load", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class PaceOptions:
    """How fast it is asked."""

    request_rate: Annotated[float, flag("Requests per second; inf sends all at once.")] = math.inf
    burstiness: Annotated[float, flag("1 is a Poisson process, less comes in bursts, more evenly.")] = 1.0
    max_concurrency: Annotated[int | None, flag("Most requests under way at once; by default no limit.")] = None
    num_warmups: Annotated[int, flag("Requests, one after the other, before the first that counts.")] = 1
    timeout: Annotated[float, flag("Seconds after which a request has failed.")] = 600.0

    def check(self) -> None:
        """Raises:
        UsageError: a value is out of range.
        """
        check_positive(max_concurrency=1 if self.max_concurrency is None else self.max_concurrency)
        if self.num_warmups < 0:
            raise UsageError(f"--num-warmups must be at least 0, not {self.num_warmups}")
        for name in ("request_rate", "burstiness", "timeout"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")


@Parameter(name="*", group=OUTPUT_GROUP)
@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What is told."""

    goodput: Annotated[
        Sequence[str],
        flag(
            "Also count requests within limits in milliseconds: ttft:500 tpot:50 e2el:9000.",
            consume_multiple=True,
            negative=(),
            show_default=False,
            json_list=False,
        ),
    ] = ()
    percentile_metrics: Annotated[str, flag("Of ttft, tpot, itl and e2el, those to tell about.", **TEXT)] = ",".join(
        _METRICS
    )
    metric_percentiles: Annotated[str, flag("Percentiles, separated by commas.", **TEXT)] = "99"
    save_result: Annotated[Path | None, flag("Write the result as JSON to this file.")] = None
    save_detailed: Annotated[bool, switch("In JSON also each request: lengths, times, text, error.")] = False

    def limits_ms(self) -> dict[str, float]:
        """Of a good request.

        Raises:
            UsageError: one cannot be read.
        """
        limits = {}
        for text in self.goodput:
            name, _, value = text.partition(":")
            try:
                limits[name] = float(value)
            except ValueError:
                limits[name] = -1.0
            if name not in _GOODPUT_METRICS or not limits[name] >= 0:
                raise UsageError(
                    f"--goodput takes {', '.join(_GOODPUT_METRICS)} with milliseconds, as in ttft:500, not {text!r}"
                )
        return limits

    def metrics(self) -> list[str]:
        """Those to tell about.

        Raises:
            UsageError: one is unknown.
        """
        names = [name.strip() for name in self.percentile_metrics.split(",") if name.strip()]
        for name in names:
            if name not in _METRICS:
                raise UsageError(f"--percentile-metrics: nothing is called {name!r}; known: {', '.join(_METRICS)}")
        return names

    def percentiles(self) -> list[float]:
        """Those to tell.

        Raises:
            UsageError: one cannot be read.
        """
        try:
            values = [float(text) for text in self.metric_percentiles.split(",")]
        except ValueError:
            values = [-1.0]
        if not all(0 <= value <= 100 for value in values):
            raise UsageError(
                f'--metric-percentiles must be numbers up to 100 such as "50,99", not {self.metric_percentiles!r}'
            )
        return values


TARGET = TargetOptions()
WORKLOAD = WorkloadOptions()
PACE = PaceOptions()
RESULT = ResultOptions()
