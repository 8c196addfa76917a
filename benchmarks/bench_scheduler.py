"""Time per step of the scheduler alone: plan_step and resolve_step, nothing else.

    python benchmarks/bench_scheduler.py [--rows 64 256] [--steps 400] [--profile]

"decode" is running rows only; "queue" adds a hundred long prompts that wait for blocks, their start cached; in
"arrivals" one request ends and another comes at each step. The budgets are those of decode alone.
"""

import argparse
import cProfile
import gc
import pstats
import statistics
import time
from collections.abc import Callable

from kilotron.inference_request import InferenceRequest, RequestTimings
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import StepResult
from kilotron.scheduling.step_planner import SchedulerLimits

BUDGET_MS = {64: 0.3, 256: 1.0}
BLOCK_SIZE = 32
SHARED_LENGTH = 2048
OWN_LENGTH = 256
MOST_GENERATED = 2048
LONG_LENGTH = 100_000


class Load:
    """A scheduler with running rows, stepped with made-up tokens."""

    def __init__(self, num_rows: int, num_blocks: int, max_requests: int, max_tokens: int = 8192) -> None:
        limits = SchedulerLimits(
            block_size=BLOCK_SIZE,
            max_requests=max_requests,
            max_tokens=max_tokens,
            max_logits_tokens=512,
            max_waiting_requests=100_000,
            aging_steps=256,
            enable_prefix_caching=True,
            enable_chunked_prefill=True,
        )
        self.scheduler = Scheduler(limits, num_blocks)
        self.num_requests = 0
        for _ in range(num_rows):
            self.add(SHARED_LENGTH, OWN_LENGTH, MOST_GENERATED)
        while len(self.scheduler.running) < num_rows:
            self.step()

    def add(self, shared_length: int, own_length: int, max_generated: int) -> None:
        """One more request; the first tokens of its prompt are everybody's."""
        self.num_requests += 1
        prompt = [*range(shared_length), *[self.num_requests] * own_length]
        params = SamplingParams(num_tokens_to_generate=max_generated)
        request = InferenceRequest(
            self.num_requests, prompt, params, RequestTimings(0.0), max_generated=max_generated, seed=1
        )
        self.scheduler.check_admissible(request)
        self.scheduler.add_request(request)

    def step(self, ended: frozenset[int] = frozenset()) -> float:
        """-> seconds the scheduler took."""
        start = time.perf_counter()
        plan = self.scheduler.plan_step(0.0)
        planned = time.perf_counter()
        assert plan is not None
        result = StepResult([7] * sum(row.samples for row in plan.rows))
        resumed = time.perf_counter()
        self.scheduler.resolve_step(plan, result, ended)
        return planned - start + time.perf_counter() - resumed


def decode(num_rows: int, num_steps: int) -> list[float]:
    load = Load(num_rows, num_blocks=num_rows * 256, max_requests=num_rows)
    return [load.step() for _ in range(num_steps)]


def queue(num_rows: int, num_steps: int) -> list[float]:
    load = Load(num_rows, num_rows * 256, max_requests=num_rows + 1, max_tokens=2 * LONG_LENGTH)
    blocks_to_grow = num_rows * (num_steps // BLOCK_SIZE + 3)
    load.scheduler.allocator.allocate(load.scheduler.allocator.num_available - blocks_to_grow)
    for _ in range(100):
        load.add(SHARED_LENGTH, LONG_LENGTH, 1)
    gc.freeze()  # ten million token ids are not what is measured
    return [load.step() for _ in range(num_steps)]


def arrivals(num_rows: int, num_steps: int) -> list[float]:
    load = Load(num_rows, num_blocks=num_rows * 256, max_requests=num_rows)
    seconds = []
    for _ in range(num_steps):
        oldest = load.scheduler.running[0].request.request_id
        load.add(SHARED_LENGTH, OWN_LENGTH, MOST_GENERATED)
        seconds.append(load.step(frozenset({oldest})))
    return seconds


SCENES: dict[str, Callable[[int, int], list[float]]] = {
    "decode": decode,
    "queue": queue,
    "arrivals": arrivals,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(arguments.rows[-1], arguments.steps)
        return
    print(f"{'scene':<10}{'rows':>6}{'median ms':>12}{'p99 ms':>10}{'budget ms':>12}")
    for name, scene in SCENES.items():
        for num_rows in arguments.rows:
            seconds = sorted(scene(num_rows, arguments.steps))
            median, p99 = statistics.median(seconds), seconds[len(seconds) * 99 // 100]
            budget = BUDGET_MS.get(num_rows) if name == "decode" else None
            print(f"{name:<10}{num_rows:>6}{median * 1e3:>12.3f}{p99 * 1e3:>10.3f}{budget or '-':>12}")


def profile(num_rows: int, num_steps: int) -> None:
    """Where the time of each scene goes."""
    for name, scene in SCENES.items():
        print(f"== {name}, {num_rows} rows")
        profiler = cProfile.Profile()
        profiler.runcall(scene, num_rows, num_steps)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
