"""Workload F: from the start of a process to its first token, and the most memory that it held.

For kilotron the process is the command that users type, and the first token is the first byte that it prints; for
others it is their runner, which says so. Files are in the page cache by then, as on any second start.
"""

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple, TextIO

from workloads.definitions import Request, as_json
from workloads.foreign_load import LoadMeter
from workloads.systems import System, SystemFailure, environment_of

KIB = 1024


class ColdStart(NamedTuple):
    """What one start took."""

    first_token_s: float
    peak_rss_gb: float
    """Of the largest process; files that it maps are in it."""


def measure_cold_start(system: System, request: Request, num_threads: int, log: TextIO) -> tuple[ColdStart, LoadMeter]:
    """Starts it, waits for the first token and the end.

    Raises:
        SystemFailure: it ended without a token or with an error.
    """
    command = make_command(system, request, num_threads)
    with LoadMeter() as load:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment_of(num_threads)
        )
        load.add(process.pid)
        output = os.read(process.stdout.fileno(), KIB) if process.stdout else b""
        first_token_s = time.perf_counter() - start
    # wait4 tells the peak of the process and, as far as it waited for them, of its children.
    output += process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.stdout:
        process.stdout.close()
    if process.returncode or not output or b'{"error"' in output:
        raise SystemFailure(f"{system.name} gave no first token (code {process.returncode}); see {log.name}")
    return ColdStart(first_token_s, usage.ru_maxrss * KIB / 1e9), load


def make_command(system: System, request: Request, num_threads: int) -> list[str]:
    """The command line that is timed."""
    if system.kind != "kilotron":
        message = system.load_command(num_threads) | {"requests": as_json([request])}
        message["options"]["num_requests"] = "1"
        return [*system.runner(), "--first-token", json.dumps(message)]
    words = [sys.executable, "-m", "kilotron", "generate", str(system.model), "--no-echo", "--ignore-eos"]
    words += ["--prompt-ids", ",".join(map(str, request.prompt)), "--max-tokens", str(request.num_tokens)]
    words += ["--temperature", "0", "--num-threads", str(num_threads)]
    return words + [f"--{name.replace('_', '-')}={value}" for name, value in system.options.items()]
