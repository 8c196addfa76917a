"""JSON lines between `bench_workloads.py` and a system's process. Standard library only: any interpreter runs it.

Reads {"do": "load" | "run", ...} on standard input until its end, and answers one object each on what was standard
output; whatever the system itself prints goes to standard error. A failure answers {"error": ...} and ends the process.
With --first-token it loads, generates one token of one request, tells it and ends: workload F.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TextIO


class LoadedSystem(Protocol):
    """A model in memory that serves requests."""

    def run(self, requests: list[dict[str, Any]]) -> tuple[list[float | None], list[float | None]]:
        """Serves all requests at once: seconds since the call until each one's first and last token."""

    def facts(self) -> dict[str, Any]:
        """Version and what else must be known to repeat the run."""

    def close(self) -> None:
        """Ends what the system started."""


# (model folder or file, number of threads, options) -> a system. The option num_requests is "1" where room for a single
# short request is enough: workload F.
Loader = Callable[[str, int, dict[str, str]], LoadedSystem]


class Stopwatch:
    """When each request's tokens came; fails when one has not the number of tokens that was asked for."""

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        self._wanted = [request["num_tokens"] for request in requests]
        self._start = time.perf_counter()
        self._counts = [0] * len(requests)
        self.first: list[float | None] = [None] * len(requests)
        self.last: list[float | None] = [None] * len(requests)

    def mark(self, index: int, num_tokens: int) -> None:
        """So many more tokens of a request are there."""
        now = time.perf_counter() - self._start
        self._counts[index] += num_tokens
        if self.first[index] is None:
            self.first[index] = now
        self.last[index] = now

    def timings(self) -> tuple[list[float | None], list[float | None]]:
        """What `LoadedSystem.run` returns."""
        if self._counts != self._wanted:
            raise RuntimeError(f"generated {self._counts} tokens instead of {self._wanted}")
        return self.first, self.last


def serve(load: Loader) -> None:
    """A system's main function."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first-token", metavar="JSON", help="the load command, with one request")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        if arguments.first_token:
            _tell_first_token(load, json.loads(arguments.first_token), answers)
        else:
            _answer_all(load, answers)
    except Exception as error:
        traceback.print_exc()
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


def _tell_first_token(load: Loader, command: dict[str, Any], answers: TextIO) -> None:
    system = _load(load, command)
    try:
        system.run(command["requests"])
        _say(answers, {"first_token": True})
    finally:
        system.close()


def _answer_all(load: Loader, answers: TextIO) -> None:
    """Standard input ends when the session closes it, or has died."""
    system: LoadedSystem | None = None
    try:
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "load":
                system = _load(load, command)
                _say(answers, {"facts": system.facts()})
            elif system is not None:
                first, last = system.run(command["requests"])
                _say(answers, {"first": first, "last": last})
    finally:
        if system is not None:
            system.close()


def _load(load: Loader, command: dict[str, Any]) -> LoadedSystem:
    return load(command["model"], command["num_threads"], command["options"])


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
