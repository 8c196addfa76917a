"""A real server on a free port of 127.0.0.1 in a thread, with a tiny application, and raw sockets to abuse it."""

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kilotron.errors import QueueFullError
from kilotron.text_generation_server.guard import LOOPBACK_HOSTS, Guard
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.text_generation_server.http_protocol import HttpProtocol
from kilotron.text_generation_server.http_protocol_h11 import H11HttpProtocol
from kilotron.text_generation_server.http_server import HttpServer, find_loop_factory

PROTOCOLS = {"httptools": HttpProtocol, "h11": H11HttpProtocol}
PATIENCE_S = 10.0
CHUNK = b"x" * 16384


@dataclass
class TinyApp:
    """What the application saw, for the tests to wait for."""

    was_cancelled: threading.Event = field(default_factory=threading.Event)
    has_begun: threading.Event = field(default_factory=threading.Event)
    num_sent_bytes: int = 0
    num_executed: int = 0
    is_draining: bool = False

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        self.num_executed += 1
        return JSONResponse({"length": len(body), "headers": len(request.headers), "path": request.scope["path"]})

    async def wait(self, request: Request) -> Response:
        await request.body()
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise
        return Response()

    async def flood(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.has_begun.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
                self.num_sent_bytes += len(CHUNK)
                await asyncio.sleep(0)  # as an application that waits for tokens; otherwise no disconnect is noticed
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise

    async def break_early(self, request: Request) -> Response:
        raise RuntimeError("/secret/path at 0xdeadbeef")

    async def break_late(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise RuntimeError("/secret/path at 0xdeadbeef")

    async def stuck(self, request: Request) -> Response:
        await request.body()

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield CHUNK
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled.set()
                raise

        return StreamingResponse(pieces())

    async def big(self, request: Request) -> Response:
        return Response(CHUNK * 256)

    async def full(self, request: Request) -> Response:
        raise QueueFullError("the queue is full")

    def build(self) -> Any:
        routes = Starlette(
            routes=[
                Route("/echo", self.echo, methods=["GET", "POST"]),
                Route("/wait", self.wait, methods=["POST"]),
                Route("/break", self.break_early),
                Route("/stuck", self.stuck, methods=["POST"]),
                Route("/big", self.big, methods=["POST"]),
                Route("/full", self.full, methods=["POST"]),
                Route("/admin/abort", self.echo, methods=["POST"]),
            ]
        )

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raw = {"/flood": self.flood, "/break_late": self.break_late}.get(scope["path"])
            await (raw or routes)(scope, receive, send)

        return app


@dataclass
class World:
    """A running server and its address."""

    app: TinyApp
    server: HttpServer
    listener: socket.socket
    loop: asyncio.AbstractEventLoop
    should_stop: asyncio.Event

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.should_stop.set)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        peer = socket.socket()
        if receive_buffer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.settimeout(PATIENCE_S)
        peer.connect(("127.0.0.1", self.port))
        return peer

    def ask(self, data: bytes) -> http.client.HTTPResponse:
        """Send raw bytes on a new connection and parse what comes back; the body is read."""
        with self.connect() as peer:
            send_all(peer, data)
            return read_response(peer)


def send_all(peer: socket.socket, data: bytes) -> None:
    """Send as much as the server takes; it may well close before the end."""
    try:
        peer.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


def read_response(peer: socket.socket) -> Any:
    response: Any = http.client.HTTPResponse(peer)
    response.begin()
    response.content = response.read()
    return response


def error_of(response: Any) -> dict[str, Any]:
    """The error object, checked for its shape."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error: dict[str, Any] = json.loads(response.content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def request(
    target: str = "/echo", *headers: str, method: str = "POST", body: bytes = b"", host: str = "127.0.0.1"
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@contextmanager
def serving(
    limits: HttpLimits, protocol: str = "httptools", tls: ssl.SSLContext | None = None, drain_timeout_s: float = 1.0
) -> Iterator[World]:
    app = TinyApp()
    guard = Guard(
        app.build(),
        limits,
        allowed_hosts=LOOPBACK_HOSTS,
        allowed_origins=["https://chat.example"],
        is_draining=lambda: app.is_draining,
    )
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        server = HttpServer(guard, limits, listener, tls=tls, drain_timeout_s=drain_timeout_s)
        server.config.http = PROTOCOLS[protocol]
        should_stop = asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []
        has_loop = threading.Event()

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            has_loop.set()
            await server.serve_until(should_stop)

        def run() -> None:
            with asyncio.Runner(loop_factory=find_loop_factory()) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run)
        thread.start()
        assert has_loop.wait(PATIENCE_S)
        world = World(app, server, listener, loops[0], should_stop)
        try:
            yield world
        finally:
            if thread.is_alive():
                world.stop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
