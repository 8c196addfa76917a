"""P10 and P35 over a thousand kills: engines die at any moment under load, and no token is lost, doubled or wrong."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kilotron.coordinator.coordinator_connection import CoordinatorConnection
from kilotron.coordinator.credentials import Credentials
from kilotron.errors import EngineDiedError, KilotronError, ServiceUnavailableError
from soak.counting_engine import token_of
from unit.coordinator.core.core_world import submission_of
from unit.coordinator.raw_peers import running_coordinator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_KILLS = 1000
NUM_ENGINES = 3
NUM_STREAMS = 24
TESTS = Path(__file__).parents[1]


class Engines:
    """Processes that are killed and replaced."""

    def __init__(self, secret: Path) -> None:
        self._secret = secret
        self._numbers = itertools.count(1000)
        path = f"{TESTS.parent / 'src'}:{TESTS}"
        self._environment = {**os.environ, "PYTHONPATH": path}
        self.processes = [self._start() for _ in range(NUM_ENGINES)]

    def _start(self) -> "subprocess.Popen[bytes]":
        command = (sys.executable, "-m", "soak.counting_engine", str(self._secret), str(next(self._numbers)))
        return subprocess.Popen(command, env=self._environment)

    def kill_one(self, draw: random.Random) -> None:
        victim = self.processes.pop(draw.randrange(len(self.processes)))
        victim.kill()
        victim.wait()
        self.processes.append(self._start())

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


async def stream(client: CoordinatorConnection, number: int, draw: random.Random, ends: Counter[str]) -> None:
    """One request to its end; its tokens are compared as they come."""
    length = draw.randrange(1, 40)
    is_streamed = number % 3 > 0
    submission = submission_of(
        f"{number:032x}", seed=number, max_generated=length, params={"streaming": True} if is_streamed else {}
    )
    tokens: list[int] = []
    try:
        async for outputs in client.submit(submission):
            for output in outputs:
                assert output.offset == len(tokens)
                tokens += output.token_ids
        ends["done"] += 1
        assert len(tokens) == length
    except EngineDiedError:
        ends["died with output" if tokens else "died"] += 1
    except ServiceUnavailableError:
        assert not tokens
        ends["refused"] += 1
        await asyncio.sleep(0.02)
    except KilotronError as error:
        raise AssertionError(f"request {number} ended with {error!r}") from error
    assert tokens == [token_of(number, offset) for offset in range(len(tokens))]


async def play(credentials: Credentials, engines: Engines) -> tuple[Counter[str], int]:
    client = CoordinatorConnection(credentials)
    await client.start()
    await client.wait_until(lambda status: sum(row.phase == "ready" for row in status.replicas) == NUM_ENGINES, 60)
    draw, ends, numbers = random.Random(0), Counter[str](), itertools.count(1)
    is_over = asyncio.Event()

    async def keep_asking() -> None:
        while not is_over.is_set():
            await asyncio.wait_for(stream(client, next(numbers), draw, ends), 30)

    async with asyncio.TaskGroup() as group:
        for _ in range(NUM_STREAMS):
            group.create_task(keep_asking())
        for _ in range(NUM_KILLS):
            await asyncio.sleep(draw.uniform(0.0, 0.2))
            await asyncio.to_thread(engines.kill_one, draw)
            # One that lives, at least, so that work goes on.
            await client.wait_until(lambda status: status.is_ready, 60)
        is_over.set()
    answer = await client.read_metrics()
    await client.close()
    assert answer.gauges["num_requests_in_flight"] == 0
    return ends, int(answer.counters["request_retries"])


def test_a_thousand_killed_engines_cost_nobody_a_wrong_token(tmp_path: Path) -> None:
    started = time.monotonic()
    with running_coordinator(max_queued_requests=1000) as coordinator:
        secret = tmp_path / "credentials"
        secret.touch(mode=0o600)
        secret.write_bytes(coordinator.credentials.to_json())
        engines = Engines(secret)
        try:
            ends, num_retries = asyncio.run(play(coordinator.credentials, engines))
        finally:
            engines.close()
    print(f"{NUM_KILLS} kills in {time.monotonic() - started:.0f} s: {dict(ends)}, {num_retries} retries")
    assert ends["done"] > NUM_KILLS
    assert num_retries > NUM_KILLS / 100
