"""Under overload the front end refuses by itself for a moment, and asks the coordinator again and again."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kilotron.coordinator.service_client import OutputStream
from kilotron.coordinator.wire import Submission
from kilotron.errors import NoPlaceInQueueError, QueueFullError
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.refusal_gate import RefusalGate
from serving import Service


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_the_gate_is_open_until_a_refusal_and_again_a_moment_after_it() -> None:
    clock = Clock()
    gate = RefusalGate(clock)
    gate.check()
    gate.close(NoPlaceInQueueError("16 wait", 7.0))
    with pytest.raises(HttpError, match="16 wait") as refusal:
        gate.check()
    assert (refusal.value.status, refusal.value.code) == (503, "queue_full")
    assert refusal.value.headers["retry-after"] == "7"
    clock.now += 0.05
    gate.check()


class FullService:
    """A client of a coordinator that refuses everything, and counts how often it was asked."""

    def __init__(self, service: Service, refusal: QueueFullError) -> None:
        self._client = service.client
        self._refusal = refusal
        self.num_asked = 0

    def submit(self, submission: Submission) -> OutputStream:
        self.num_asked += 1
        raise self._refusal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@contextmanager
def asked(service: Service, refusal: QueueFullError, bodies: list[Any]) -> Iterator[tuple[FullService, list[Any]]]:
    client = FullService(service, refusal)

    async def main() -> list[Any]:
        async with service.open(client) as http:
            return [await http.post("/v1/completions", json=body) for body in bodies]

    yield client, asyncio.run(main())


def test_while_no_place_is_left_requests_are_refused_without_being_looked_at(service: Service) -> None:
    bodies = [{"prompt": "a"}, {"prompt": "b"}, {"nonsense": 1}]
    with asked(service, NoPlaceInQueueError("full", 3.0), bodies) as (client, answers):
        assert [answer.status_code for answer in answers] == [503] * 3
        assert {answer.headers["retry-after"] for answer in answers} == {"3"}
        assert client.num_asked == 1


def test_one_prompt_that_is_too_long_for_the_queue_shuts_nobody_else_out(service: Service) -> None:
    with asked(service, QueueFullError("too many tokens"), [{"prompt": "a"}] * 3) as (client, answers):
        assert [answer.status_code for answer in answers] == [503] * 3
        assert client.num_asked == 3
