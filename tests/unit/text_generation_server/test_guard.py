"""What the guard does beside what the abuse tests see: on its own, without sockets."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kilotron.errors import DeadlineExceededError, NumericalError, QueueFullError, ServiceUnavailableError
from kilotron.text_generation_server.guard import LOOPBACK_HOSTS, Guard
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.http_limits import HttpLimits

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Peer:
    """The server's side of one request: gives out the body, then waits for `leave`; keeps what is sent."""

    def __init__(self, *body: bytes) -> None:
        pieces = body or (b"",)
        self._messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        self._messages[-1]["more_body"] = False
        self._left = asyncio.Event()
        self.sent: list[Message] = []

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(b"".join(message["body"] for message in self.sent[1:]))["error"]
        return error


def guarded(app: App) -> Guard:
    limits = HttpLimits(max_body_bytes=10)
    return Guard(app, limits, allowed_hosts=LOOPBACK_HOSTS, allowed_origins=[], is_draining=lambda: False)


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/v1", "headers": [(b"host", b"localhost:8000"), *headers]}


async def read_all(receive: Any) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


def start(status: int, kind: bytes = b"application/json") -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def end(body: bytes = b"") -> Message:
    return {"type": "http.response.body", "body": body, "more_body": False}


def handle(app: App, *body: bytes) -> Peer:
    async def run() -> Peer:
        peer = Peer(*body)
        await asyncio.wait_for(guarded(app)(scope(), peer.receive, peer.send), 5)
        return peer

    return asyncio.run(run())


def test_an_application_that_answers_is_left_alone() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await read_all(receive)
        await send(start(200))
        await send(end(body))

    peer = handle(app, b"12345", b"67890")

    assert (peer.status, peer.sent[1]["body"]) == (200, b"1234567890")
    assert b"connection" not in peer.headers


def test_an_application_that_hides_the_fault_of_a_body_does_not_get_its_way() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await read_all(receive)
        except HttpError:
            await send(start(200))
            await send(end(b"all is well"))

    peer = handle(app, b"12345", b"67890", b"x")

    assert (peer.status, peer.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(("allowed", "status"), [(5, 413), (20, 200)])
def test_the_limit_of_bodies_is_raised_and_never_lowered(allowed: int, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200))
        await send(end(await read_all(receive)))

    guard, peer = guarded(app), Peer(b"x" * 15)
    guard.allow_bodies_of(allowed)
    asyncio.run(guard(scope((b"content-length", b"15")), peer.receive, peer.send))
    assert peer.status == status


def test_an_error_object_of_the_application_passes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(429))
        await send(end(b'{"error": {"code": "mine"}}'))

    assert handle(app).error["code"] == "mine"


def test_the_exception_behind_a_plain_error_page_decides_about_the_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(500, b"text/plain"))  # as Starlette does before it raises on
        await send(end(b"Internal Server Error"))
        raise NumericalError("nan in layer 3")

    peer = handle(app)

    assert (peer.status, peer.error["code"]) == (500, "numerical_error")
    assert peer.headers[b"x-should-retry"] == b"false"


def test_an_application_that_says_nothing_is_an_internal_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    assert handle(app).status == 500


def test_an_unexpected_exception_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("/secret/path")

    peer = handle(app)

    assert peer.status == 500
    assert "secret" not in str(peer.sent)
    assert "/secret/path" in caplog.text


def test_a_clients_mistake_is_not_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise HttpError(400, "no")

    assert handle(app).status == 400
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "error", [QueueFullError("16 wait"), ServiceUnavailableError("paused"), DeadlineExceededError()]
)
def test_a_refusal_under_load_is_no_line_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    assert handle(app).status in (503, 504)
    assert not caplog.records


def test_the_application_is_cancelled_when_the_client_leaves_and_its_cleanup_runs() -> None:
    events: list[str] = []

    async def run() -> Peer:
        peer = Peer()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await read_all(receive)
            peer.leave()
            try:
                await asyncio.Event().wait()
            finally:
                events.append("cleaned up")

        await asyncio.wait_for(guarded(app)(scope(), peer.receive, peer.send), 5)
        return peer

    assert asyncio.run(run()).sent == []
    assert events == ["cleaned up"]


def test_work_after_a_complete_response_goes_on_when_the_client_leaves() -> None:
    events: list[str] = []

    async def run() -> None:
        peer = Peer()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await read_all(receive)
            await send(start(200))
            await send(end())
            peer.leave()
            await asyncio.sleep(0.01)
            events.append("done")

        await guarded(app)(scope(), peer.receive, peer.send)

    asyncio.run(run())

    assert events == ["done"]


def test_an_application_may_wait_for_the_disconnect_itself() -> None:
    async def run() -> list[Message]:
        seen: list[Message] = []
        peer = Peer()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await read_all(receive)
            peer.leave()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(await receive())

        await guarded(app)(scope(), peer.receive, peer.send)
        return seen

    assert asyncio.run(run()) == [{"type": "http.disconnect"}]


def test_the_request_id_is_in_the_scope_for_whoever_logs() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["request_id"])
        await send(start(200))
        await send(end())

    async def run() -> None:
        peer = Peer()
        await guarded(app)(scope((b"x-request-id", b"abc")), peer.receive, peer.send)
        assert peer.headers[b"x-request-id"] == b"abc"

    asyncio.run(run())

    assert seen == ["abc"]


@pytest.mark.parametrize("host", [b"[::1]:8000", b"LOCALHOST", b"localhost.", b"127.0.0.1:1"])
def test_a_loopback_name_is_known_in_every_spelling(host: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200))
        await send(end())

    async def run() -> int:
        peer = Peer()
        await guarded(app)({**scope(), "headers": [(b"host", host)]}, peer.receive, peer.send)
        return peer.status

    assert asyncio.run(run()) == 200


def test_the_http_shell_never_imports_torch() -> None:
    modules = ["authentication", "guard", "http_errors", "http_limits", "http_protocol", "http_server", "tls"]
    imports = "; ".join(f"import kilotron.text_generation_server.{name}" for name in modules)
    program = f"import sys; {imports}; assert not {{'torch', 'numpy', 'zmq'}} & set(sys.modules)"

    subprocess.run((sys.executable, "-c", program), check=True)
