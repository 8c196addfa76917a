"""AsyncStream: order, bounds, ends and threads."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kilotron.async_stream import AsyncStream

Stream = AsyncStream[list[int]]


def stream_of(limit: int = 64, cancelled: list[int] | None = None) -> Stream:
    cancel = ([] if cancelled is None else cancelled).append
    return AsyncStream(7, combine=lambda one, other: one + other, cancel=cancel, limit=limit)


async def read_all(stream: Stream) -> list[list[int]]:
    return [item async for item in stream]


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), timeout=30))


def test_items_come_in_order_and_then_the_end() -> None:
    async def scene() -> None:
        stream = stream_of()
        for number in range(5):
            stream.put([number])
        stream.finish()
        assert await read_all(stream) == [[0], [1], [2], [3], [4]]
        assert stream.is_finished

    run(scene)


def test_reader_waits_for_what_is_put_later() -> None:
    async def scene() -> None:
        stream = stream_of()
        reader = asyncio.create_task(read_all(stream))
        for number in range(3):
            await asyncio.sleep(0)
            stream.put([number])
            await asyncio.sleep(0.001)
        assert not reader.done()
        stream.finish()
        assert await reader == [[0], [1], [2]]

    run(scene)


def test_slow_reader_gets_the_newest_items_combined() -> None:
    async def scene() -> None:
        stream = stream_of(limit=3)
        for number in range(6):
            stream.put([number])
        stream.finish()
        assert await read_all(stream) == [[0], [1], [2, 3, 4, 5]]

    run(scene)


def test_nothing_is_added_after_the_end() -> None:
    async def scene() -> None:
        stream = stream_of()
        stream.put([1])
        stream.finish()
        stream.put([2])
        stream.finish(ValueError("too late"))
        assert await read_all(stream) == [[1]]

    run(scene)


def test_error_comes_after_the_items_before_it() -> None:
    async def scene() -> None:
        stream = stream_of()
        stream.put([1])
        stream.finish(ValueError("broken"))
        reader = aiter(stream)
        assert await anext(reader) == [1]
        with pytest.raises(ValueError, match="broken"):
            await anext(reader)

    run(scene)


@pytest.mark.parametrize("error", [None, ValueError("broken")])
def test_stream_that_was_read_to_its_end_cancels_nobody(error: ValueError | None) -> None:
    async def scene() -> None:
        cancelled: list[int] = []
        stream = stream_of(cancelled=cancelled)
        stream.finish(error)
        try:
            await read_all(stream)
        except ValueError:
            assert error is not None
        await stream.aclose()
        assert cancelled == []

    run(scene)


def test_reader_that_leaves_early_cancels_once() -> None:
    async def scene() -> None:
        cancelled: list[int] = []
        stream = stream_of(cancelled=cancelled)
        stream.put([1])
        async for _ in stream:
            break
        gc.collect()
        await asyncio.sleep(0.01)
        await stream.aclose()
        await stream.aclose()
        assert cancelled == [7]

    run(scene)


def test_cancelled_reader_cancels_the_request() -> None:
    async def scene() -> None:
        cancelled: list[int] = []
        reader = asyncio.create_task(read_all(stream_of(cancelled=cancelled)))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert cancelled == [7]

    run(scene)


def test_closing_ends_a_reader_in_another_task() -> None:
    async def scene() -> None:
        stream = stream_of()
        reader = asyncio.create_task(read_all(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await reader == []

    run(scene)


def test_leaving_after_the_producer_ended_cancels_nobody() -> None:
    async def scene() -> None:
        cancelled: list[int] = []
        stream = stream_of(cancelled=cancelled)
        stream.put([1])
        stream.finish()
        await stream.aclose()
        assert cancelled == []

    run(scene)


def test_four_threads_lose_nothing_and_keep_their_order() -> None:
    async def scene() -> None:
        stream, num_items = stream_of(limit=8), 2000
        producers = [
            threading.Thread(target=lambda base=base: [stream.put([base + i]) for i in range(num_items)])
            for base in range(0, 40_000, 10_000)
        ]
        waiter = threading.Thread(target=lambda: [p.join() for p in producers] and stream.finish())
        for thread in (*producers, waiter):
            thread.start()
        numbers = [number for item in await read_all(stream) for number in item]
        assert len(numbers) == 4 * num_items
        for base in range(0, 40_000, 10_000):
            assert [n for n in numbers if base <= n < base + num_items] == list(range(base, base + num_items))

    run(scene)


def test_engine_never_waits_for_a_reader_that_does_not_read() -> None:
    async def scene() -> None:
        stream = stream_of(limit=4)
        producer = threading.Thread(target=lambda: [stream.put([i]) for i in range(10_000)] and stream.finish())
        producer.start()
        producer.join(timeout=20)
        assert not producer.is_alive()
        items = await read_all(stream)
        assert len(items) == 4
        assert [number for item in items for number in item] == list(range(10_000))

    run(scene)


def test_closed_loop_counts_as_a_reader_that_left() -> None:
    cancelled: list[int] = []

    async def make() -> Stream:
        return stream_of(cancelled=cancelled)

    stream = asyncio.run(make())
    stream.put([1])
    stream.put([2])
    stream.finish()
    assert stream.is_finished
    assert cancelled == [7]


def test_ending_a_stream_whose_loop_is_closed_cancels_nobody() -> None:
    cancelled: list[int] = []

    async def make() -> Stream:
        return stream_of(cancelled=cancelled)

    asyncio.run(make()).finish()
    assert cancelled == []


def test_stream_needs_a_loop_to_be_read_in() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        stream_of()
