"""What each process of a service is told over its stdin; JSON, so that none of it stands in argv or an environment."""

from typing import Any

import msgspec

from kilotron.coordinator.credentials import Credentials


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a process logs."""

    format: str = "text"
    """text or json."""
    level: str = "INFO"


class EngineProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """For an engine replica."""

    credentials: Credentials
    model: str | None
    tokenizer: str | None
    options: dict[str, Any]
    """Those of InferenceConfig that are not at their default."""
    index: int
    """Its number among the replicas."""
    cpus: list[int] | None
    """The CPUs this replica may use; None leaves all."""
    log: LogConfig


class CoordinatorProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """For the coordinator."""

    credentials: Credentials
    options: dict[str, Any]
    """Those of ServeConfig that are not at their default."""
    log: LogConfig


class FrontendProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """For an HTTP front end."""

    credentials: Credentials
    options: dict[str, Any]
    """Those of ServeConfig that are not at their default."""
    api_key_digests: list[str]
    """SHA-256 of each key, in hex."""
    admin_key_digests: list[str]
    listening_fd: int
    log: LogConfig
