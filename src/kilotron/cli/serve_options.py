"""The flags of `kilotron serve`: fields of `ServeConfig`, by the same names; values are checked there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from kilotron.cli.options import TEXT, flag, many, switch
from kilotron.config import ServeConfig

_SERVER = Group("Server", sort_key=1)
_SAFETY = Group("Keys and safety (API keys: KILOTRON_API_KEY; admin key: KILOTRON_ADMIN_KEY)", sort_key=2)
_LOAD = Group("Load", sort_key=3)

_DEFAULTS = ServeConfig()


@Parameter(name="*", group=_SERVER)
@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where and how."""

    host: Annotated[str, flag("Address to listen on; a public one needs an API key.")] = _DEFAULTS.host
    port: Annotated[int, flag("Port; 0 takes a free one.")] = _DEFAULTS.port
    served_model_name: Annotated[
        str | None, flag("The model's name in requests; by default that of the checkpoint.", **TEXT)
    ] = _DEFAULTS.served_model_name
    data_parallel_size: Annotated[int, flag("Engine replicas.", "--data-parallel-size", "-dp")] = (
        _DEFAULTS.data_parallel_size
    )
    frontend_replicas: Annotated[
        int, flag("HTTP processes on the same port.", "--frontend-replicas", "--api-server-count")
    ] = _DEFAULTS.frontend_replicas
    drain_timeout_s: Annotated[
        float, flag("Seconds that running requests get after SIGTERM.", "--drain-timeout-s", "--shutdown-timeout")
    ] = _DEFAULTS.drain_timeout_s
    heartbeat_s: Annotated[float, flag("Seconds between signs of life; two missed ones mean death.")] = (
        _DEFAULTS.heartbeat_s
    )
    step_timeout_s: Annotated[float, flag("Seconds after which a step counts as hung.")] = _DEFAULTS.step_timeout_s
    log_format: Annotated[str, flag("text or json.")] = _DEFAULTS.log_format
    access_log: Annotated[bool, switch("Log a line per HTTP request.")] = _DEFAULTS.access_log


@Parameter(name="*", group=_SAFETY)
@dataclass(frozen=True, kw_only=True)
class SafetyOptions:
    """Who may use it."""

    api_key_file: Annotated[str | None, flag("File of mode 0600 with an API key per line.", **TEXT)] = None
    admin_key_file: Annotated[str | None, flag("The same for the admin routes.", **TEXT)] = None
    allow_public_without_key: Annotated[bool, switch("Serve anybody who can reach a public address.")] = False
    allowed_hosts: Annotated[
        Sequence[str], many("Name by which browsers may call a server on a loopback address.", "--allowed-host", **TEXT)
    ] = ()
    allowed_origins: Annotated[
        Sequence[str], many("Web page (scheme://host:port) whose scripts may call.", "--allowed-origin", **TEXT)
    ] = ()
    tls_cert_file: Annotated[
        str | None, flag("Certificate chain in PEM.", "--tls-cert-file", "--ssl-certfile", **TEXT)
    ] = None
    tls_key_file: Annotated[str | None, flag("Its key in PEM.", "--tls-key-file", "--ssl-keyfile", **TEXT)] = None
    share_prefix_cache_between_keys: Annotated[
        bool, switch("Requests with different API keys may find each other's cached prefixes.")
    ] = False
    allow_unknown_fields: Annotated[bool, switch("Ignore unknown request fields instead of refusing them.")] = False


@Parameter(name="*", group=_LOAD)
@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How much of it."""

    max_queued_requests: Annotated[
        int, flag("Requests that may wait; more get 503.", "--max-queued-requests", "--max-num-queued-reqs")
    ] = _DEFAULTS.max_queued_requests
    max_queued_tokens: Annotated[
        int | None,
        flag(
            "Prompt tokens that may wait; by default 8 times what the KV caches hold.",
            "--max-queued-tokens",
            "--max-num-queued-tokens",
        ),
    ] = None
    max_concurrent_per_key: Annotated[int, flag("Requests that one API key may have under way; more get 429.")] = (
        _DEFAULTS.max_concurrent_per_key
    )
    request_timeout_s: Annotated[float, flag("Seconds after which a request is cancelled.")] = (
        _DEFAULTS.request_timeout_s
    )
    routing: Annotated[str, flag("With several replicas: longest_prefix, least_load or round_robin.")] = (
        _DEFAULTS.routing
    )
    routing_alpha: Annotated[float, flag("With longest_prefix: weight of the cached share against the load.")] = (
        _DEFAULTS.routing_alpha
    )


LISTEN = ListenOptions()
SAFETY = SafetyOptions()
LOAD = LoadOptions()


def to_serve_config(listen: ListenOptions, safety: SafetyOptions, load: LoadOptions) -> ServeConfig:
    """All flags together.

    Raises:
        ConfigError: a value is out of range.
    """
    return ServeConfig(**asdict(listen), **asdict(safety), **asdict(load))
