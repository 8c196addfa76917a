"""EngineLoadFigures: what an engine has done so far and has to do, in numbers for metrics, routers and watchdogs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

FINISH_REASONS = ("stop", "length", "abort", "deadline", "error")


@dataclass(slots=True)
class EngineCounts:
    """What an engine itself counts."""

    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISH_REASONS, 0))
    """Requests that ended, by finish reason."""
    steps_failed: int = 0
    scheduler_faults_in_a_row: int = 0
    """Steps that the scheduler failed to plan or resolve since the last one that went well."""

    def finish(self, reason: str) -> None:
        """A request ended."""
        self.finished[reason] = self.finished.get(reason, 0) + 1


class EngineLoadFigures(NamedTuple):
    """Figures of one moment; they are read one after the other while the engine goes on, so sums may be off by a step.

    Counts only grow; the last seven are as of now.
    """

    num_steps: int
    num_steps_failed: int
    """Steps that raised: their rows were run again one by one, or the scheduler began anew."""
    num_tokens_generated: int
    num_prompt_tokens_computed: int
    """Those that encoders read are among them."""
    num_prompt_tokens_cached: int
    """Found in the prefix cache when their request was first admitted."""
    num_prefix_tokens_queried: int
    """Prompt tokens of admitted requests that were allowed to read the prefix cache."""
    num_prefix_tokens_hit: int
    num_preemptions: int
    num_requests_finished: Mapping[str, int]
    """By finish reason: "stop", "length", "abort", "deadline", "error"."""
    num_running: int
    num_waiting: int
    num_blocks_owned: int
    num_blocks_cached: int
    """Cached and owned by nobody; to be had at once."""
    num_blocks_free: int
    step_started: float | None
    """When the running step began, by the monotonic clock; None between steps."""
    kv_mode: str | None
    """How the KV cache is suspended; None while it is in use."""
