"""`python -m kilotron.apis.service_process ROLE`: the main program of an engine replica, a coordinator or a front end.

Started by a supervisor only, which hands over the configuration. Imports what its role needs and nothing else: torch in
engines alone.
"""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import msgspec

from kilotron.apis.process_configs import CoordinatorProcessConfig, EngineProcessConfig, FrontendProcessConfig
from kilotron.apis.process_log import log_to_stderr
from kilotron.coordinator.supervision.child_process import EXIT_USAGE
from kilotron.coordinator.supervision.parent_link import ParentLink
from kilotron.errors import CheckpointError, ConfigError, KernelError, KilotronError, ProtocolError, TokenizerError

if TYPE_CHECKING:
    from kilotron.coordinator.pulse_sender import ReplicaState

EXIT_FAILED = 1

_USAGE_ERRORS = (ConfigError, KernelError, CheckpointError, TokenizerError, ProtocolError)


def main() -> int:
    """Runs the role named in argv until it is told to end; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
    link = ParentLink.connect()
    try:
        _ROLES[sys.argv[1]](link)
    except KilotronError as error:
        return _fail(link, EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED, str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        return _fail(link, EXIT_FAILED, f"{type(error).__name__}: {error}")
    return 0


def run_engine(link: ParentLink) -> None:
    """An engine replica: pulse first, so that loading is seen, then the model, then work."""
    config = msgspec.json.decode(link.config, type=EngineProcessConfig)
    log_to_stderr(config.log, sys.argv[1])
    if config.cpus is not None:
        os.sched_setaffinity(0, config.cpus)
    from kilotron.coordinator.pulse_sender import PulseSender, ReplicaState, new_incarnation

    state = ReplicaState(new_incarnation())
    pulse = PulseSender(config.credentials, state)
    link.report_phase("importing")
    from kilotron.apis.replica import load_replica

    try:
        worker, details = load_replica(config, state, lambda phase, progress: _report(link, state, phase, progress))
        _on_terminate(worker.stop)
        link.report_ready(**details)
        worker.run()
    finally:
        pulse.close()


def run_coordinator(link: ParentLink) -> None:
    """The coordinator."""
    config = msgspec.json.decode(link.config, type=CoordinatorProcessConfig)
    log_to_stderr(config.log, sys.argv[1])
    from kilotron.config import ServeConfig
    from kilotron.coordinator.coordinator import DataParallelInferenceCoordinator
    from kilotron.coordinator.coordinator_config import CoordinatorConfig

    options = CoordinatorConfig.from_serve_config(ServeConfig(**config.options))
    coordinator = DataParallelInferenceCoordinator(options, config.credentials)
    _on_terminate(coordinator.stop)
    gc.freeze()  # all that is here stays
    link.report_ready()
    coordinator.run()


def run_frontend(link: ParentLink) -> None:
    """An HTTP front end."""
    config = msgspec.json.decode(link.config, type=FrontendProcessConfig)
    log_to_stderr(config.log, sys.argv[1])
    from kilotron.apis.frontend import run_frontend as run

    run(config, link)


_ROLES: dict[str, Callable[[ParentLink], None]] = {
    "engine": run_engine,
    "coordinator": run_coordinator,
    "frontend": run_frontend,
}


def _on_terminate(stop: Callable[[], None]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop).start())


def _report(link: ParentLink, state: "ReplicaState", phase: str, progress: float) -> None:
    state.phase, state.progress = "loading", progress
    link.report_phase(phase, progress)


def _fail(link: ParentLink, exit_code: int, message: str) -> int:
    link.report_failed(exit_code, message)
    return exit_code


def end_process(exit_code: int) -> NoReturn:
    """Ends without taking the interpreter and torch apart, which on a busy machine takes longer than a stop may."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    end_process(main())
