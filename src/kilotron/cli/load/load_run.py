"""Sends requests at the times that a rate asks for, no more at once than allowed, and collects what becomes of them."""

import asyncio
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from kilotron.cli.load.request_stream import Outcome, send
from kilotron.cli.remote.http_exchange import Connector

Result = TypeVar("Result")


@dataclass(frozen=True)
class ReadyRequest:
    """A request as the bytes that will be sent."""

    data: bytes
    input_len: int
    """Tokens that its prompt should have."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When requests are sent."""

    request_rate: float
    """Per second; infinite sends all at once."""
    burstiness: float
    """1 is a Poisson process, less comes in bursts, more evenly."""
    max_concurrency: int | None
    """None is no limit. What waits for its turn has not been sent: its clock does not run."""
    timeout_s: float
    """Of one request."""


def arrival_times(count: int, pace: Pace, seed: int) -> list[float]:
    """Seconds from the start at which each request is sent; the last one at exactly count / rate."""
    if math.isinf(pace.request_rate):
        return [0.0] * count
    source = random.Random(seed)
    scale = 1 / (pace.request_rate * pace.burstiness)
    times = list(itertools.accumulate(source.gammavariate(pace.burstiness, scale) for _ in range(count)))
    stretch = count / pace.request_rate / times[-1] if times[-1] > 0 else 1.0
    return [at * stretch for at in times]


def run_load(
    connector: Connector, requests: Sequence[ReadyRequest], pace: Pace, seed: int, on_finished: Callable[[], None]
) -> tuple[list[Outcome], float]:
    """Sends all and waits for all.

    Returns:
        What became of each, in the order of `requests`, and the seconds that all took together.
    """
    times = arrival_times(len(requests), pace, seed)
    gc.collect()
    gc.freeze()  # what has been made so far stays, and need not be looked at while the clock runs
    try:
        return _run_in_loop(_run(connector, requests, times, pace, on_finished))
    finally:
        gc.unfreeze()


async def _run(
    connector: Connector,
    requests: Sequence[ReadyRequest],
    times: Sequence[float],
    pace: Pace,
    on_finished: Callable[[], None],
) -> tuple[list[Outcome], float]:
    limit: AbstractAsyncContextManager[Any]
    limit = nullcontext() if pace.max_concurrency is None else asyncio.Semaphore(pace.max_concurrency)

    async def send_one(request: ReadyRequest) -> Outcome:
        async with limit:
            outcome = await send(connector, request.data, request.input_len, timeout_s=pace.timeout_s)
        on_finished()
        return outcome

    started = time.monotonic()
    tasks = []
    async with asyncio.TaskGroup() as group:
        for request, at in zip(requests, times, strict=True):
            wait_s = started + at - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(group.create_task(send_one(request)))
    return [task.result() for task in tasks], time.monotonic() - started


def _run_in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # a part of the extra "server"; it takes less than half of the CPU time for each chunk
    except ImportError:
        return None
    return uvloop.new_event_loop
