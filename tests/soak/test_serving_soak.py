"""Twenty thousand requests of all kinds through the process tree, a fifth of them left anywhere: nothing stays."""

import asyncio
import json
import random
from itertools import pairwise
from typing import Any

import pytest

from service.running_service import RunningService, report, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_REQUESTS = 20_000
SHARE_LEFT = 0.2
AT_ONCE = 48
NUM_MARKS = 5
MOST_SLOPE_BYTES = 200  # a request, between the two marks with the least growth, all processes together
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
BAD: list[bytes] = [
    b'{"prompt": ',
    b"[]",
    b'{"prompt": "a", "temperature": 9}',
    b'{"prompt": [99999999]}',
    b'{"prompt": ""}',
]
PROMPTS: list[Any] = ["Once upon a time", "The cat", "Grüße", [5, 6, 7], ["a", "b"], list(range(40))]


class Crowd:
    """Sends requests over connections that it keeps, and leaves some of them at a random moment."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self.statuses: dict[int, int] = {}
        self.num_left = 0

    async def send(self, count: int) -> None:
        numbers = iter(range(count))

        async def one_by_one() -> None:
            for _ in numbers:
                await self._send_one()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_by_one())

    async def _send_one(self) -> None:
        body, is_left = self._draw(), self._random.random() < SHARE_LEFT
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(HEAD % len(body) + body)
            if is_left:
                await self._leave(reader, writer)
                return
            answer = await asyncio.wait_for(reader.read(), 60)
            status = int(answer[9:12])
            self.statuses[status] = self.statuses.get(status, 0) + 1
            assert b"text/event-stream" not in answer or answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), answer
        finally:
            writer.close()

    async def _leave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_left += 1
        try:
            async with asyncio.timeout(self._random.expovariate(50)):
                await reader.read()
        except TimeoutError:
            pass
        if self._random.random() < 0.5:
            writer.transport.abort()

    def _draw(self) -> bytes:
        if self._random.random() < 0.1:
            return self._random.choice(BAD)
        fields: dict[str, Any] = {
            "prompt": self._random.choice(PROMPTS),
            "max_tokens": self._random.randint(1, 4),
            "n": self._random.choice([1, 1, 1, 2, 3]),
            "stream": self._random.random() < 0.5,
            "seed": self._random.randrange(100),
        }
        if self._random.random() < 0.1:
            fields |= {"logprobs": 2, "echo": True}
        if self._random.random() < 0.2:  # a long one, that is left more often than not before its end
            fields |= {"max_tokens": 60, "ignore_eos": True}
        return json.dumps(fields).encode()


def footprint(service: RunningService) -> tuple[int, dict[int, tuple[int, int]]]:
    """-> resident bytes of all processes, and the files and threads of each."""
    children = service.children()
    counts = {child.pid: (child.num_fds(), child.num_threads()) for child in children}
    return sum(child.memory_info().rss for child in children), counts


def test_many_requests_leave_nothing_in_any_process() -> None:
    with running("--num-threads", "1", "--buffer-size-gb", "0.03", heartbeat_s=5) as service:
        crowd = Crowd(service.port, seed=1)
        marks = []
        for _ in range(NUM_MARKS):
            asyncio.run(crowd.send(NUM_REQUESTS // NUM_MARKS))
            service.wait_idle()
            marks.append(footprint(service))
            print(f"{crowd.num_left} left, answers {crowd.statuses}, {marks[-1][0] / 2**20:.1f} MiB, {marks[-1][1]}")

        # A heap grows by leaps for a while; what stays of every request grows between any two marks.
        growth = min(after - before for (before, _), (after, _) in pairwise(marks))
        slope = growth / (NUM_REQUESTS / NUM_MARKS)
        report("P31 growth per request", slope, MOST_SLOPE_BYTES, "bytes")
        assert set(crowd.statuses) == {200, 400}
        assert crowd.num_left > NUM_REQUESTS * SHARE_LEFT / 2
        assert slope <= MOST_SLOPE_BYTES
        assert [counts for _, counts in marks] == [marks[0][1]] * NUM_MARKS  # the same processes, files and threads
        assert "Traceback" not in service.log
