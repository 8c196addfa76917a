"""When a child that died is started again, and when it is given up. Knows no processes and no clock."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often one child may die.

    The window bounds how often a child that works dies; failed starts in a row are counted however long each takes,
    because loading a large model may take longer than the window.
    """

    max_restarts: int = 3  # within window_s
    window_s: float = 60.0
    max_failed_starts: int = 3  # in a row: deaths before the child was ready
    delays_s: tuple[float, ...] = (0.5, 1.0, 2.0)  # before the first, second... restart; the last one holds on


class RestartHistory:
    """The deaths of one child so far."""

    def __init__(self, policy: RestartPolicy) -> None:
        """Starts with none."""
        self._policy = policy
        self._restarts: list[float] = []
        self._num_failed_starts = 0

    def next_delay_s(self, *, was_ready: bool, now: float) -> float | None:
        """Takes in a death and says how long to wait before the restart; `None` gives the child up.

        Args:
            was_ready: Whether it had been ready since it was last started.
            now: Seconds on a monotonic clock.
        """
        self._num_failed_starts = 0 if was_ready else self._num_failed_starts + 1
        self._restarts = [time for time in self._restarts if now - time < self._policy.window_s]
        if self._num_failed_starts >= self._policy.max_failed_starts:
            return None
        if len(self._restarts) >= self._policy.max_restarts:
            return None
        delays = self._policy.delays_s
        delay = delays[min(len(self._restarts), len(delays) - 1)]
        self._restarts.append(now)
        return delay
