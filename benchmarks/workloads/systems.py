"""Systems that take part: what the command line says of each, its process, and its model in the form that it reads."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from workloads.definitions import Request, Timings, as_json

ROOT = Path(__file__).parents[1]
STOP_TIMEOUT_S = 30.0
# A system that takes longer for one answer is ended.
ANSWER_TIMEOUT_S = 1800.0
# Peers by the names that users give them, with the module that runs each.
MODULES = {
    "kilotron": "workloads.peers.kilotron",
    "transformers": "workloads.peers.transformers",
    "openvino": "workloads.peers.openvino",
    "llama.cpp": "workloads.peers.llama_cpp",
    "vllm": "workloads.peers.vllm",
}
# Bits that a weight takes in each variant, scales included; what a system does not name is bfloat16.
WEIGHT_BITS = {"bf16": 16.0, "int8": 8.0, "int4": 4.5, "q8_0": 8.5, "q4_0": 4.5}
VARIANTS = {"openvino": ("bf16", "int8", "int4"), "llama.cpp": ("bf16", "q8_0", "q4_0")}
PRECISIONS = {"q8_0": "int8", "q4_0": "int4"}


class SystemFailure(Exception):
    """A system could not be set up, or failed while it ran."""


@dataclass(frozen=True)
class System:
    """One line of the report."""

    kind: str
    variant: str = ""
    """What tells it from other lines of its kind; for peers also the precision of its weights."""
    command: tuple[str, ...] = (sys.executable,)
    """Its interpreter; for llama.cpp the path of its server."""
    options: dict[str, str] = field(default_factory=dict)
    model: Path = Path()

    @property
    def name(self) -> str:
        return f"{self.kind} {self.variant}" if self.variant not in ("", "bf16") else self.kind

    @property
    def precision(self) -> str:
        """Systems are compared with peers of the same one."""
        word = self.options.get("quantization", self.variant) if self.kind == "kilotron" else self.variant
        word = PRECISIONS.get(word, word)
        return word if word in WEIGHT_BITS else "bf16"

    @property
    def weight_bits(self) -> float:
        return WEIGHT_BITS.get(self.variant, WEIGHT_BITS[self.precision])

    @property
    def is_peer(self) -> bool:
        return self.kind != "kilotron"

    def runner(self) -> list[str]:
        """The command that starts its process."""
        interpreter = (sys.executable,) if self.kind == "llama.cpp" else self.command
        return [*interpreter, "-m", MODULES[self.kind]]

    def load_command(self, num_threads: int) -> dict[str, Any]:
        """What the process is told first."""
        options = dict(self.options)
        if self.kind == "llama.cpp":
            options["server"] = self.command[0]
        return {"do": "load", "model": str(self.model), "num_threads": num_threads, "options": options}


class SystemProcess:
    """A loaded system that stays idle between its turns."""

    def __init__(self, system: System, num_threads: int, log: TextIO) -> None:
        self.system = system
        self._log = log
        self._process = subprocess.Popen(
            system.runner(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment_of(num_threads),
            process_group=0,
        )
        try:
            self.facts: dict[str, Any] = self._ask(system.load_command(num_threads))["facts"]
        except BaseException:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        return self._process.pid

    def run(self, requests: Sequence[Request]) -> Timings:
        """Serves the requests, all submitted at once."""
        answer = self._ask({"do": "run", "requests": as_json(requests)})
        return Timings(answer["first"], answer["last"])

    def close(self) -> None:
        """Asks it to end, and ends it when it does not."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kill(self) -> None:
        """With what it started: a server of its own must not stay behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise SystemFailure(f"{self.system.name} has no pipes")
        watchdog = threading.Timer(ANSWER_TIMEOUT_S, self._kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            writer.write(json.dumps(message) + "\n")
            writer.flush()
            line = reader.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise SystemFailure(f"{self.system.name}: {answer['error']}; see {self._log.name}")
        return answer


def environment_of(num_threads: int) -> dict[str, str]:
    """Our modules in reach, as many threads as asked, nothing from the network."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(num_threads),
        "HF_HUB_OFFLINE": "1",
    }


def parse_peer(text: str) -> System:
    """`openvino=/venv/bin/python`, `llama.cpp:q8_0=/build/bin/llama-server`, `vllm=env NAME=VALUE /venv/bin/python`.

    Raises:
        ValueError: the peer or its variant is unknown, or there is no command.
    """
    name, _, command = text.partition("=")
    kind, _, variant = name.partition(":")
    kind = {"llama": "llama.cpp"}.get(kind, kind)
    if kind not in MODULES or kind == "kilotron":
        known = ", ".join(peer for peer in MODULES if peer != "kilotron")
        raise ValueError(f"unknown peer {kind!r}; known: {known}")
    if variant and variant not in VARIANTS.get(kind, ()):
        raise ValueError(f"{kind} has no variant {variant!r}; it has: {', '.join(VARIANTS.get(kind, ())) or 'none'}")
    words = tuple(shlex.split(command))
    if not words:
        raise ValueError(f"{text!r} names no command: write {kind}=PATH")
    return System(kind, variant, words)


def parse_options(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """`name:key=value` once per option: the options of each name. A name may hold colons and blanks.

    Raises:
        ValueError: a text has another form.
    """
    options: dict[str, dict[str, str]] = {}
    for text in texts:
        place, has_value, value = text.partition("=")
        name, _, key = place.rpartition(":")
        if not (name and key and has_value):
            raise ValueError(f"{text!r} is not of the form name:key=value")
        options.setdefault(name, {})[key] = value
    return options
