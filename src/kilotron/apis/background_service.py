"""BackgroundService: supervised processes of a program that has other things to do."""

import threading
from collections.abc import Sequence

from kilotron.coordinator.supervision.child_process import ChildSpec
from kilotron.coordinator.supervision.supervisor import SupervisionEnd, Supervisor, SupervisorEvents
from kilotron.errors import ConfigError

_CLOSE_PATIENCE_S = 10.0
_POLL_S = 0.01


class _Readiness(SupervisorEvents):
    """Strikes out who is ready."""

    def __init__(self, unready: set[str]) -> None:
        self._unready = unready

    def on_ready(self, name: str) -> None:
        self._unready.discard(name)


class BackgroundService:
    """Starts the processes from a thread that lives as long as they do; they die with it, whatever happens.

    Args:
        specs: the processes.
        drain_timeout_s: what front ends among them get to finish their requests when all is closed.
    """

    def __init__(self, specs: Sequence[ChildSpec], *, drain_timeout_s: float = 1.0) -> None:
        self._unready = {spec.name for spec in specs}
        self._supervisor = Supervisor(specs, _Readiness(self._unready), drain_timeout_s=drain_timeout_s)
        self._patience_s = drain_timeout_s + _CLOSE_PATIENCE_S
        self.end: SupervisionEnd | None = None
        """Why the processes are gone, once they are."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kilotron-supervisor", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all processes are gone by then."""
        return self._ended.wait(timeout_s)

    def wait_until_ready(self) -> None:
        """Returns when every process has been ready once.

        Raises:
            ConfigError: they ended instead.
        """
        while self._unready:
            if self._ended.wait(_POLL_S):
                raise self.failure()

    def failure(self) -> ConfigError:
        """What to raise when the processes are gone and should not be."""
        error = "" if self.end is None else self.end.error
        return ConfigError(error or "the service ended before it was ready")

    def close(self) -> None:
        """Ends the processes and returns when they are gone. Idempotent."""
        if not self._ended.is_set():
            self._supervisor.stop()
            if not self._ended.wait(self._patience_s):
                self._supervisor.stop()  # a second time kills
        self._thread.join()

    def _run(self) -> None:
        try:
            self.end = self._supervisor.run()
        finally:
            self._ended.set()
