"""GenerationCall: the requests that one HTTP call became, sent and read together. If one ends badly, all end.

Knows nothing of HTTP's answers; what becomes of the pieces is the endpoints' business.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

from kilotron.coordinator.request_errors import from_wire
from kilotron.coordinator.service_client import OutputStream, ServiceClient
from kilotron.coordinator.submissions import beams_as_choices, join_outputs
from kilotron.coordinator.wire import Finish, Output, Submission
from kilotron.errors import DeadlineExceededError, RequestAbortedError, StepFailedError

_MOST_UNREAD_BATCHES = 16


class GenerationCall:
    """Sends all on entering, and aborts what is still under way on leaving.

    Raises:
        KilotronError: on entering or while reading; why one of the requests was refused or ended.
    """

    def __init__(self, client: ServiceClient, submissions: Sequence[Submission]) -> None:
        self._client = client
        self._submissions = submissions
        self._streams: list[OutputStream] = []
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            for submission in self._submissions:
                self._streams.append(self._client.submit(submission))
        except BaseException:
            await self._abort_all()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        for reader in self._readers:
            reader.cancel()
        await self._abort_all()

    def __aiter__(self) -> AsyncIterator[tuple[int, list[Output]]]:
        """Yields (index of the submission, new pieces of its continuations) as they come."""
        return self._read_one() if len(self._streams) == 1 else self._read_all()

    async def collect(self) -> list[list[Output]]:
        """Reads everything: for each submission, for each of its continuations or beams, the whole output."""
        results: list[dict[int, Output]] = [{} for _ in self._submissions]
        async for index, outputs in self:
            for output in outputs:
                before = results[index].get(output.choice)
                results[index][output.choice] = output if before is None else join_outputs(before, output)
        return [
            [part for choice in sorted(choices) for part in beams_as_choices(choices[choice])] for choices in results
        ]

    async def _read_one(self) -> AsyncIterator[tuple[int, list[Output]]]:
        async for outputs in self._streams[0]:
            for output in outputs:
                if output.finish is not None:
                    check_finish(output.finish)
            yield 0, outputs

    async def _read_all(self) -> AsyncIterator[tuple[int, list[Output]]]:
        batches: asyncio.Queue[tuple[int, list[Output] | BaseException | None]] = asyncio.Queue(_MOST_UNREAD_BATCHES)
        self._readers = [
            asyncio.create_task(_forward(stream, index, batches)) for index, stream in enumerate(self._streams)
        ]
        num_left = len(self._streams)
        while num_left:
            index, batch = await batches.get()
            if batch is None:
                num_left -= 1
            elif isinstance(batch, BaseException):
                raise batch
            else:
                yield index, batch

    async def _abort_all(self) -> None:
        for stream in self._streams:
            await stream.aclose()


def check_finish(finish: Finish) -> None:
    """Whether a continuation ended as it should.

    Raises:
        KilotronError: it did not.
    """
    if finish.reason in ("stop", "length"):
        return
    if finish.error is not None:
        raise from_wire(finish.error)
    if finish.reason == "deadline":
        raise DeadlineExceededError("the request's deadline passed before it finished")
    if finish.reason == "abort":
        raise RequestAbortedError("the request was aborted")
    raise StepFailedError("the request failed")


async def _forward(stream: OutputStream, index: int, batches: "asyncio.Queue[tuple[int, Any]]") -> None:
    try:
        async for outputs in stream:
            for output in outputs:
                if output.finish is not None:
                    check_finish(output.finish)
            await batches.put((index, outputs))
    except Exception as error:
        await batches.put((index, error))
    else:
        await batches.put((index, None))
