"""A server that says what a test scripts: raw HTTP/1.1 on a free port of this machine, in a thread of its own."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Reply:
    """A response: a body, or chunks each of which is sent after its delay in seconds."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Sequence[tuple[float, bytes]] | None = None
    is_cut: bool = False
    """Close the connection in the middle of the chunks."""


Handler = Callable[[Request], Reply]


def event(value: Any) -> bytes:
    """A server-sent event of a JSON value."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chat_chunk(text: str, finish_reason: str | None = None) -> bytes:
    """A piece of a streamed chat answer."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


def completion_chunk(text: str, finish_reason: str | None = None) -> bytes:
    """A piece of a streamed completion."""
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def usage_chunk(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The last chunk but [DONE]: usage, and no choice."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return event({"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 1}}})


DONE = b"data: [DONE]\n\n"


def error_body(message: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return {"error": {"message": message, "type": "some_error", "param": None, "code": code}}


class FakeOpenAI:
    """Answers /v1/models with one model, and other paths as `handlers` say; remembers all requests."""

    def __init__(self, **handlers: Handler) -> None:
        self.handlers = {f"/v1/{name.replace('__', '/')}": handler for name, handler in handlers.items()}
        self.requests: list[Request] = []
        self.most_at_once = 0
        self.left_early = threading.Event()
        self.port = 0
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._is_over = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[Any]:
        """What was posted."""
        return [request.body for request in self.requests if request.body is not None]

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._is_over.wait()
        server.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            request = await _read_request(reader)
            self.requests.append(request)
            await self._reply(writer, self._answer(request))
        except ConnectionError:
            self.left_early.set()
        finally:
            self._at_once -= 1
            writer.close()

    def _answer(self, request: Request) -> Reply:
        handler = self.handlers.get(request.path)
        if handler is not None:
            return handler(request)
        if request.path == "/v1/models":
            return Reply(body={"object": "list", "data": [{"id": "fake-1", "object": "model"}]})
        return Reply(status=404, body=error_body(f"no {request.path}"))

    async def _reply(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in reply.headers.items())
        if reply.chunks is None:
            body = json.dumps(reply.body).encode()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for delay_s, chunk in reply.chunks:
            await asyncio.sleep(delay_s)
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
        if not reply.is_cut:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    body = json.loads(await reader.readexactly(length)) if length else None
    return Request(first.split(" ")[1], headers, body)
