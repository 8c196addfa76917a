"""CoordinatorConfig: the options of a server that its coordinator needs, checked already by ServeConfig."""

from dataclasses import dataclass, fields
from typing import Self

from kilotron.config import ServeConfig
from kilotron.coordinator.core.routing import Policy


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    """See the fields of the same names in `ServeConfig`."""

    heartbeat_s: float = 5.0
    step_timeout_s: float = 120.0
    max_queued_requests: int = 256
    max_queued_tokens: int | None = None
    max_concurrent_per_key: int = 64
    routing: Policy = "longest_prefix"
    routing_alpha: float = 0.5

    @classmethod
    def from_serve_config(cls, config: ServeConfig) -> Self:
        """The part of a server's options that concerns its coordinator."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})
