"""A load generator in a process of its own: `python load_generator.py PORT closed|open NUMBER SECONDS`.

Half of the requests stream. Closed: NUMBER at a time; open: NUMBER per second, whatever comes back. Connections are
kept and used again. Writes what came of the requests as one JSON object. Costs little, since it shares the server's
cores: requests are bytes made beforehand, and of an answer only its status, its end and Retry-After are looked at.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

import uvloop

DEADLINE_S = 5.0
MAX_TOKENS = 32
# Below the server's limit of connections (1024), which is another matter than its capacity; a request that finds none
# waits, and its clock runs.
MOST_CONNECTIONS = 512
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"retry-after: (\d+)", re.IGNORECASE)
_LOOK_PERIOD_S = 0.01


def make_requests() -> Iterator[bytes]:
    """Without end: a few short prompts, streamed and not."""
    made = []
    for seed in range(16):
        for is_stream in (False, True):
            body = {"prompt": f"Once upon a time, number {seed}", "max_tokens": MAX_TOKENS, "ignore_eos": True}
            data = json.dumps(body | {"seed": seed, "stream": is_stream, "timeout": DEADLINE_S}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            made.append(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return cycle(made)


class Figures:
    """What came of the requests."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.num_in_time = 0
        self.reject_seconds: list[float] = []
        self.answer_seconds: list[float] = []
        self.retry_after: list[int] = []
        self.lags: list[float] = []

    def add(self, status: int, seconds: float, retry_after: int | None, *, is_whole: bool) -> None:
        self.statuses[str(status) if is_whole else "broken"] += 1
        if not is_whole:
            return
        if status == 200:
            self.answer_seconds.append(seconds)
            self.num_in_time += seconds <= DEADLINE_S
        else:
            self.reject_seconds.append(seconds)
            self.retry_after.append(retry_after or 0)


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, figures: Figures, idle: list["Connection"]) -> None:
        self._figures = figures
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] | None = None
        self._received = b""
        self._started = 0.0

    def send(self, request: bytes, started: float) -> "asyncio.Future[None]":
        assert self._transport is not None
        self._started = started
        self._received = b""
        self.done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self.done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's has no common base

    def data_received(self, data: bytes) -> None:
        if self.done is None or self.done.done():
            return  # the server closes this connection, and says why
        self._received += data
        head, separator, body = self._received.partition(_END_OF_HEAD)
        if not separator:
            return
        length = _LENGTH.search(head)
        is_whole = body.endswith(b"0\r\n\r\n") if length is None else len(body) == int(length[1])
        if is_whole:
            is_good_stream = length is not None or b"data: [DONE]" in body
            retry_after = _RETRY_AFTER.search(head)
            self._end(int(head[9:12]), None if retry_after is None else int(retry_after[1]), is_whole=is_good_stream)
            self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self.done is not None and not self.done.done():
            self._figures.reasons[repr(exc)] += 1
            self._end(0, None, is_whole=False)

    def _end(self, status: int, retry_after: int | None, *, is_whole: bool) -> None:
        assert self.done is not None
        self._figures.add(status, time.monotonic() - self._started, retry_after, is_whole=is_whole)
        self.done.set_result(None)


class Generator:
    """Sends requests to one server."""

    def __init__(self, port: int) -> None:
        self.figures = Figures()
        self._port = port
        self._idle: list[Connection] = []
        self._requests = make_requests()
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def send(self) -> None:
        """One request to its end."""
        started = time.monotonic()
        async with self._free:
            await self._send(started)

    async def _send(self, started: float) -> None:
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self.figures, self._idle), "127.0.0.1", self._port
                )
            except OSError:
                self.figures.statuses["refused"] += 1
                return
        await connection.send(next(self._requests), started)

    async def closed(self, number: int, seconds: float) -> None:
        end = time.monotonic() + seconds

        async def one_by_one() -> None:
            while time.monotonic() < end:
                await self.send()

        await asyncio.gather(*(one_by_one() for _ in range(number)))

    async def open(self, rate: float, seconds: float) -> None:
        started, num_sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.monotonic() - started) < seconds:
                for _ in range(int(rate * elapsed) - num_sent):
                    group.create_task(self.send())
                    num_sent += 1
                await asyncio.sleep(_LOOK_PERIOD_S)
                self.figures.lags.append(time.monotonic() - started - elapsed - _LOOK_PERIOD_S)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


async def main(port: int, kind: str, number: float, seconds: float) -> dict[str, object]:
    generator = Generator(port)
    started = time.monotonic()
    await (generator.closed(int(number), seconds) if kind == "closed" else generator.open(number, seconds))
    figures = generator.figures
    return {
        "seconds": time.monotonic() - started,
        "statuses": figures.statuses,
        "reasons": figures.reasons,
        "num_in_time": figures.num_in_time,
        "retry_after": sorted(set(figures.retry_after)),
        "answer_p50_s": quantile(figures.answer_seconds, 0.5),
        "answer_p99_s": quantile(figures.answer_seconds, 0.99),
        "reject_p50_s": quantile(figures.reject_seconds, 0.5),
        "reject_p99_s": quantile(figures.reject_seconds, 0.99),
        "lag_p50_s": quantile(figures.lags, 0.5),
        "lag_p99_s": quantile(figures.lags, 0.99),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))))
