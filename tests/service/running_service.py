"""A real `kilotron serve` process tree for tests: started, looked into, hurt, and ended with nothing left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from service.http_calls import Answer, Call, ask

SOURCE = Path(__file__).parents[2] / "src"
PATIENCE_S = 60.0
HEARTBEAT_S = 1.0  # two of them are more than a loaded machine lets a process wait
_LOOK_PERIOD_S = 0.01
PROGRAM = (sys.executable, "-m", "kilotron", "serve")
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KILOTRON_")} | {
    "PYTHONPATH": str(SOURCE),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "NO_COLOR": "1",
}


def wait_for(is_so: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "it") -> float:
    """Seconds until something is so; fails when that takes too long."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < timeout_s, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(_LOOK_PERIOD_S)
    return time.monotonic() - started


def report(promise: str, measured: float, bar: float, unit: str = "s") -> None:
    """The figure for the table in docs/reliability.md; shown with `pytest -s` or `-rP`."""
    print(f"[{promise}] measured {measured:.3f} {unit}, bar {bar:g} {unit}")


class RunningService:
    """One `kilotron serve` process and its children.

    `folder` is the only place for temporary files that it knows, so that what it leaves there is seen.
    """

    def __init__(
        self,
        *options: str,
        port: int = 0,
        heartbeat_s: float = HEARTBEAT_S,
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kt-", dir="/tmp"))  # a short path: sockets lie below it
        self._log_path = self.folder.with_suffix(".log")
        places = {"TMPDIR": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                (*PROGRAM, "--port", str(port), "--heartbeat-s", str(heartbeat_s), *options),
                env={**_ENVIRONMENT, **places, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log if stderr is None else stderr,
            )
        self._seen: set[psutil.Process] = set()
        self._port = port
        self.key = ""
        self.num_replicas = 1

    # What it says

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def port(self) -> int:
        if not self._port:
            wait_for(lambda: re.search(r"listening at \S+:\d+", self.log) or not self.is_running, what="a port")
            found = re.search(r"listening at \S+:(\d+)", self.log)
            assert found is not None, self.log
            self._port = int(found[1])
        return self._port

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    # Its processes

    def children(self, role: str = "") -> list[psutil.Process]:
        """Living processes below it, of all levels: engine, coordinator, frontend, or any."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
            self._seen.update(found)
            return [child for child in found if _is_alive(child) and role in (_role_of(child), "")]
        return []

    def kill(self, role: str, index: int = 0, number: int = signal.SIGKILL) -> int:
        """Sends a signal to a child -> its pid."""
        child = self.children(role)[index]
        child.send_signal(number)
        return int(child.pid)

    def wait_replaced(self, pid: int, timeout_s: float = PATIENCE_S) -> None:
        """Returns when all replicas are ready again after this engine was killed."""

        def is_so() -> bool:
            pids = {child.pid for child in self.children("engine")}
            return pid not in pids and len(pids) == self.num_replicas

        wait_for(is_so, timeout_s, "another engine")
        self.wait_ready(self.num_replicas, timeout_s)

    def wait_for_orphans(self, timeout_s: float) -> float:
        """Seconds until every process that was ever seen is gone."""
        return wait_for(lambda: not any(map(_is_alive, self._seen)), timeout_s, "the end of all children")

    # What it answers

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str) -> Answer:
        return ask(self.port, method, path, body, headers=self._headers(key, headers))

    def start(
        self, body: dict[str, Any], path: str = "/v1/completions", *, key: str | None = None, **headers: str
    ) -> Call:
        """Begins a generation in a thread."""
        return Call(self.port, path, body, headers=self._headers(key, headers))

    def complete(self, body: dict[str, Any], **options: Any) -> Call:
        """The same, waiting for its end."""
        return self.start(body, **options).wait()

    def complete_patiently(self, body: dict[str, Any]) -> Call:
        """The same, asked again while the answer is 503: of several front ends one may learn later than another that
        the service is ready again, and says "try again" till then, as it should."""
        deadline = time.monotonic() + PATIENCE_S
        while (call := self.complete(body)).status == 503 and time.monotonic() < deadline:
            time.sleep(_LOOK_PERIOD_S)
        return call

    def _headers(self, key: str | None, headers: Mapping[str, str]) -> dict[str, str]:
        key = self.key if key is None else key
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return {"authorization": f"Bearer {key}", **named} if key else named

    def is_ready(self) -> bool:
        with suppress(OSError):
            return self.ask("GET", "/ready").status == 200
        return False

    def num_ready(self) -> int:
        with suppress(OSError):
            answer = self.ask("GET", "/ready")
            return int(answer.json["replicas_ready"]) if answer.status == 200 else 0
        return 0

    def wait_ready(self, num_replicas: int = 1, timeout_s: float = PATIENCE_S) -> float:
        def is_so() -> bool:
            assert self.is_running, self.log
            return self.num_ready() >= num_replicas

        return wait_for(is_so, timeout_s, f"{num_replicas} ready replicas")

    def metrics(self) -> dict[str, float]:
        """Our own figures: name, or name/label; histograms without their buckets."""
        answer = self.ask("GET", "/metrics")
        assert answer.status == 200, answer.text
        figures: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if not sample.name.startswith("kilotron:") or "le" in sample.labels:
                    continue
                labels = [value for name, value in sample.labels.items() if name not in _COMMON_LABELS]
                figures["/".join([sample.name.removeprefix("kilotron:"), *labels])] = sample.value
        return figures

    def is_idle(self) -> bool:
        """No request is known anywhere, and no engine has a block in use."""
        if self.ask("GET", "/metrics").status == 503:
            return False  # of two front ends one may be starting again
        figures = self.metrics()
        return not any(figures[name] for name in _WORK)

    def wait_idle(self, timeout_s: float = 10.0) -> float:
        return wait_for(self.is_idle, timeout_s, "an idle service")

    # Its end

    def terminate(self, number: int = signal.SIGTERM) -> None:
        self.children()
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def check_nothing_is_left(self) -> None:
        """For when it has ended: no process, no file."""
        self.wait_for_orphans(5.0)
        assert list(self.folder.iterdir()) == []

    def discard(self) -> None:
        """Whatever state it is in."""
        self.children()
        if self.is_running:
            self.process.kill()
        self.process.wait()
        for child in self._seen:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log_path.unlink(missing_ok=True)


_COMMON_LABELS = ("model_name", "engine")
_WORK = ("num_requests_in_flight", "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@contextmanager
def running(*options: str, num_replicas: int = 1, key: str = "", **how: Any) -> Iterator[RunningService]:
    """A service that is ready. If it still runs in the end, SIGTERM must end it well."""
    service = RunningService("--data-parallel-size", str(num_replicas), *options, **how)
    service.key, service.num_replicas = key, num_replicas
    try:
        service.wait_ready(num_replicas)
        if "stderr" not in how:  # one front end has answered; this tells of all
            wait_for(lambda: "ready after" in service.log, what="the report of a complete start")
        service.children()
        yield service
        if service.is_running:
            service.wait_idle()
            service.terminate()
            assert service.wait() == 0, service.log
            service.check_nothing_is_left()
    except BaseException:
        print(service.log)
        raise
    finally:
        service.discard()


@contextmanager
def starting(*options: str, **how: Any) -> Iterator[RunningService]:
    """A service that may never be ready, and that the test ends itself."""
    service = RunningService(*options, **how)
    try:
        yield service
    except BaseException:
        print(service.log)
        raise
    finally:
        service.discard()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _role_of(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.Error:
        return "?"
    return words[-1] if "kilotron.apis.service_process" in words else "helper"


def canary_places(service: RunningService) -> Iterator[tuple[str, str]]:
    """Everything of a service that others might read: (where, text)."""
    yield "log", service.log
    yield "metrics", service.ask("GET", "/metrics").text
    for process in service.children():
        with suppress(OSError, psutil.Error):
            yield f"argv of {process.pid}", " ".join(process.cmdline())
            yield f"environment of {process.pid}", json.dumps(process.environ())
