"""What the service costs beside the engine: CPU per streamed token over all processes, added time to the first token,
time from the command to the first completion, and what a second replica gives.

Everything is measured against the same engine used directly, in the same run, alternating: the model, its options and
the prompts are the same. CPU is user plus system time of the server's processes (the load generator's not counted).

    python benchmarks/bench_serving.py [--model FOLDER] [--streams 1 16] [--tokens 200] [--repeats 5]
"""

import argparse
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from kilotron.apis.llm import MegatronLLM
from kilotron.cli.load.load_run import Pace, run_load
from kilotron.cli.load.request_stream import Outcome
from kilotron.cli.load.request_writer import RequestWriter
from kilotron.cli.load.workload import LoadRequest
from kilotron.cli.remote.http_exchange import Connector
from kilotron.cli.remote.server_address import server_address
from kilotron.sampling_params import SamplingParams

PROMPT_LENGTH = 16
ROLES = ("engine", "coordinator", "frontend", "supervisor")


def make_prompts(count: int, seed: int) -> list[list[int]]:
    return [
        [(seed * 7919 + index * 31 + place * 7) % 200 + 20 for place in range(PROMPT_LENGTH)] for index in range(count)
    ]


class Server:
    """A running `kilotron serve`, and what its processes have used."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        self.url = url
        self._root = psutil.Process(process.pid)

    def cpu_s(self) -> dict[str, float]:
        """User and system time by role."""
        seconds = dict.fromkeys(ROLES, 0.0)
        for process in [self._root, *self._root.children(recursive=True)]:
            role = next((role for role in ROLES if role in process.cmdline()), "supervisor")
            times = process.cpu_times()
            seconds[role] += times.user + times.system
        return seconds

    def run(self, count: int, tokens: int, seed: int) -> list[Outcome]:
        """Streams to their end, all at once; all must succeed."""
        connector = Connector(server_address(self.url, None))
        writer = RequestWriter("openai", "", ignores_eos=True)
        requests = [
            writer.write(connector, LoadRequest(ids, PROMPT_LENGTH, tokens)) for ids in make_prompts(count, seed)
        ]
        pace = Pace(request_rate=math.inf, burstiness=1.0, max_concurrency=None, timeout_s=300.0)
        outcomes, _ = run_load(connector, requests, pace, 0, lambda: None)
        failed = [outcome.error for outcome in outcomes if outcome.error]
        if failed:
            raise SystemExit(f"{len(failed)} of {count} requests failed: {failed[0]}")
        return outcomes


@contextmanager
def serving(model: str | None, *options: str) -> Iterator[tuple[Server, float]]:
    """-> the server, and seconds from the command to its first completion."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.perf_counter()
    command = [sys.executable, "-m", "kilotron", "serve", *([model] if model else []), "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _completes(url):
            if process.poll() is not None:
                raise SystemExit(f"{command} ended with {process.returncode}")
            time.sleep(0.01)
        yield Server(process, url), time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _completes(url: str) -> bool:
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status == 200
    except OSError:
        return False


def measure_direct(llm: MegatronLLM, count: int, tokens: int, seed: int) -> tuple[float, float]:
    """The engine alone, streaming to listeners: -> CPU seconds, median time to the first token in seconds."""
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=tokens, ignore_eos=True, streaming=True)
    before, engine = time.process_time(), llm.engine
    requests = [engine.add_request(ids, params, listener=lambda *_: None) for ids in make_prompts(count, seed)]
    while engine.has_unfinished_requests:
        engine.step()
    return time.process_time() - before, statistics.median(request.ttft or 0.0 for request in requests)


def measure_served(server: Server, count: int, tokens: int, seed: int) -> tuple[dict[str, float], float]:
    """-> CPU seconds by role, median time to the first token in seconds."""
    before = server.cpu_s()
    outcomes = server.run(count, tokens, seed)
    after = server.cpu_s()
    return {role: after[role] - before[role] for role in ROLES}, statistics.median(o.ttft_s for o in outcomes)


def compare(server: Server, llm: MegatronLLM, count: int, tokens: int, repeats: int) -> None:
    """Direct and served in turns; prints what serving adds."""
    direct, served = [], []
    for seed in range(repeats + 1):
        direct.append(measure_direct(llm, count, tokens, seed))
        served.append(measure_served(server, count, tokens, seed))
    del direct[0], served[0]  # the first of each warms caches
    num_tokens = count * tokens
    engine_us = statistics.median(cpu for cpu, _ in direct) / num_tokens * 1e6
    by_role = {role: statistics.median(cpu[role] for cpu, _ in served) / num_tokens * 1e6 for role in ROLES}
    added_us = statistics.median(sum(cpu.values()) for cpu, _ in served) / num_tokens * 1e6 - engine_us
    added_ms = (statistics.median(t for _, t in served) - statistics.median(t for _, t in direct)) * 1e3
    print(f"{count:7d}  {engine_us:9.1f}  " + "  ".join(f"{by_role[role]:11.1f}" for role in ROLES), end="")
    print(f"  {added_us:8.1f}  {added_ms:10.2f}")


def measure_replicas(model: str | None, tokens: int, repeats: int) -> None:
    """Tokens per second of one and of two pinned replicas, in turns; whole answers leave the cores to them."""
    params = SamplingParams(temperature=0.0, num_tokens_to_generate=tokens, ignore_eos=True)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with (
        MegatronLLM(model, use_coordinator=True, num_threads=1) as one,
        MegatronLLM(model, use_coordinator=True, data_parallel_size=2, num_threads=1) as two,
    ):
        for seed in range(repeats + 1):
            for num_replicas, llm in ((1, one), (2, two)):
                started = time.perf_counter()
                llm.generate(make_prompts(64, seed), params, show_progress=False)
                if seed:
                    rates[num_replicas].append(64 * tokens / (time.perf_counter() - started))
    medians = {number: statistics.median(values) for number, values in rates.items()}
    print(f"one replica {medians[1]:.0f} tokens/s, two pinned {medians[2]:.0f}: {medians[2] / medians[1]:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; the bundled tiny model without it")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    options = {"num_threads": 1}
    starts = []
    for _ in range(3):
        with serving(arguments.model) as (_, start_s):
            starts.append(start_s)
    shown = ", ".join(f"{start_s:.2f}" for start_s in starts)
    print(f"command to first completion: median {statistics.median(starts):.2f} s of {shown}")
    print("\nCPU us per streamed token")
    header = "  ".join(f"{role:>11s}" for role in ROLES)
    print(f"streams     direct  {header}     added  added ttft ms")
    with MegatronLLM(arguments.model, **options) as llm, serving(arguments.model, "--num-threads", "1") as (server, _):
        for count in arguments.streams:
            compare(server, llm, count, arguments.tokens, arguments.repeats)
    print()
    measure_replicas(arguments.model, arguments.tokens, arguments.repeats)


if __name__ == "__main__":
    main()
