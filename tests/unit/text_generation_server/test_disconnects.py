"""Who leaves takes their requests along: stream or not, one or many; and one failure ends the whole call."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kilotron.coordinator.service_client import OutputStream
from kilotron.coordinator.wire import Submission
from kilotron.errors import QueueFullError, ServiceUnavailableError
from serving import Service, events_of

LONG = {"max_tokens": 900, "ignore_eos": True}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "a", **LONG}),
    "stream": ("/v1/completions", {"prompt": "a", "stream": True, **LONG}),
    "n": ("/v1/completions", {"prompt": "a", "n": 4, **LONG}),
    "prompts": ("/v1/completions", {"prompt": ["a", "b", "c"], **LONG}),
    "stream of prompts": ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2, "stream": True, **LONG}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], **LONG}),
    "chat stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True, **LONG}),
}


class Connection:
    """One request over raw ASGI, whose client leaves when told to."""

    def __init__(self, path: str, body: Any) -> None:
        self.scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"content-length", b"9")],
            "server": ("test", 80), "client": ("test", 1), "state": {},
        }  # fmt: skip
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[dict[str, Any]] = []
        self.has_sent = asyncio.Event()

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        return await self._incoming.get()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.has_sent.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the engine tells nobody
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("name", CALLS)
def test_a_client_that_leaves_frees_its_memory_at_once(service: Service, name: str) -> None:
    async def main() -> float:
        path, body = CALLS[name]
        connection = Connection(path, body)
        call = asyncio.create_task(service.app()(connection.scope, connection.receive, connection.send))
        await until(lambda: service.client.status.replicas[0].load.num_running > 0)
        connection.leave()
        before = asyncio.get_running_loop().time()
        await until(lambda: not service.client.status.replicas[0].load.num_blocks_owned)
        seconds = asyncio.get_running_loop().time() - before
        await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), 5)
        return seconds

    assert asyncio.run(main()) < 1.0
    assert service.client.status.num_in_flight == 0


def test_an_abort_ends_the_call_with_an_error(service: Service) -> None:
    async def main() -> Any:
        async with service.open() as http:
            call = asyncio.create_task(http.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2, **LONG}))
            await until(lambda: service.client.status.num_in_flight == 2)
            first = next(iter(service.client._running))
            answer = await http.post(f"/v1/requests/cmpl-{first}/abort")
            again = await http.post("/admin/abort", json={"request_id": "0" * 32})
            return answer, again, await call

    answer, again, response = asyncio.run(main())
    assert answer.json()["status"] == "aborted"
    assert (again.status_code, again.json()["error"]["code"]) == (404, "request_not_found")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "request_aborted")
    assert service.client.status.num_in_flight == 0


class FailingClient:
    """Fails the request of a given number, after some output of it or instead of any."""

    def __init__(self, service: Service, number: int, error: Exception, *, num_outputs: int) -> None:
        self._client = service.client
        self._left = number
        self._error = error
        self._num_outputs = num_outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def submit(self, submission: Submission) -> OutputStream:
        stream = self._client.submit(submission)
        self._left -= 1
        if self._left == 0:
            put, left = stream.put, self._num_outputs

            def put_some(item: Any) -> None:
                nonlocal left
                left -= 1
                if left >= 0:
                    put(item)
                else:
                    stream.finish(self._error)

            stream.put = put_some  # type: ignore[method-assign]
        return stream


def test_one_failed_prompt_ends_the_others(service: Service) -> None:
    client = FailingClient(service, 2, QueueFullError("the queue is full", 3.0), num_outputs=0)
    response = service.post("/v1/completions", {"prompt": ["a", "b", "c"], **LONG}, client=client)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_full")
    assert response.headers["retry-after"] == "3"
    asyncio.run(until(lambda: not service.client.status.replicas[0].load.num_running))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_failure_in_a_stream_is_its_last_event(service: Service, path: str) -> None:
    client = FailingClient(service, 1, ServiceUnavailableError("the engine is gone", 1.0), num_outputs=3)
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": True, **LONG}
    del body["messages" if path == "/v1/completions" else "prompt"]
    response = service.post(path, body, client=client)
    assert response.status_code == 200
    *before, last = response.text.strip().split("\n\n")
    assert len(before) >= 3
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "service_unavailable"
    assert "[DONE]" not in response.text


def test_a_failure_before_the_first_event_is_an_ordinary_error(service: Service) -> None:
    client = FailingClient(service, 1, QueueFullError("the queue is full", 2.0), num_outputs=0)
    response = service.post("/v1/completions", {"prompt": "a", "stream": True, **LONG}, client=client)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_full")


def test_a_silent_stream_is_kept_alive(service: Service) -> None:
    from kilotron.text_generation_server.event_stream import EventStream

    async def main() -> str:
        connection = Connection("/", {})
        async with EventStream(connection.send, keep_alive_s=0.01) as events:
            await connection.has_sent.wait()
            connection.has_sent.clear()
            await connection.has_sent.wait()
            await events.put(b"data: {}\n\n")
            await events.finish()
        assert connection.sent[0]["status"] == 200
        return connection.text

    text = asyncio.run(main())
    assert text.startswith(": keep-alive\n\n")
    assert events_of(text) == [{}]
