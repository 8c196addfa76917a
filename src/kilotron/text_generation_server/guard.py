"""Guard: the outermost ASGI layer. Every request passes its checks going in, every response its repairs going out.

Owns request ids, body limits, Host and Origin, draining, cancelling on disconnect, and the last boundary at which any
exception becomes an error object. Knows nothing of routes, keys or generation.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import replace
from typing import Any

from kilotron.text_generation_server.authentication import is_admin_path
from kilotron.text_generation_server.http_errors import HttpError, http_error_of, http_error_of_status, is_for_the_log
from kilotron.text_generation_server.http_limits import HttpLimits

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_ORIGIN = "*"

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_DRAIN_RETRY_AFTER_S = 5
# What an error response may say beside the error object.
_KEPT_HEADERS = {b"allow", b"retry-after", b"www-authenticate", b"x-should-retry"}


class Guard:
    """Wraps an ASGI application.

    Args:
        app: The application; HttpError and kilotron's exceptions may leave it.
        limits: The bounds of body size and time.
        allowed_hosts: Names that `Host` may hold, without port and in lower case; None takes any. On a loopback bind
            `LOOPBACK_HOSTS`, so that a web page cannot reach the server through a name that it resolves to 127.0.0.1.
        allowed_origins: Web origins such as `https://chat.example` whose pages may call, beside those that the
            server's own address gives; `*` allows all.
        is_draining: True once no new work may begin; requests that only read, and admin requests, still pass.
    """

    def __init__(
        self,
        app: App,
        limits: HttpLimits,
        *,
        allowed_hosts: Collection[str] | None,
        allowed_origins: Collection[str],
        is_draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._limits = limits
        self._allowed_hosts = None if allowed_hosts is None else frozenset(allowed_hosts)
        self._allowed_origins = frozenset(allowed_origins)
        self._is_draining = is_draining

    def allow_bodies_of(self, num_bytes: int) -> None:
        """Raises the limit of body sizes, if that is more than it is now: for models that read long texts."""
        if num_bytes > self._limits.max_body_bytes:
            self._limits = replace(self._limits, max_body_bytes=num_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])  # of repeated ones the last counts; those that matter cannot be repeated
        exchange = Exchange(scope, headers, receive, send, self._limits)
        try:
            self._check(scope, headers)
        except HttpError as error:
            await exchange.respond(error)
            return
        await exchange.run(self._app)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._allowed_hosts is not None and host and _without_port(host) not in self._allowed_hosts:
            raise HttpError(421, "this server does not answer to the name in the Host header", code="wrong_host")
        if b"origin" in headers:
            self._check_origin(headers[b"origin"].decode("latin-1").lower(), host)
        if self._is_draining() and scope["method"] not in _SAFE_METHODS and not is_admin_path(scope["path"]):
            raise HttpError(
                503,
                "the server is shutting down",
                code="shutting_down",
                retry_after_s=_DRAIN_RETRY_AFTER_S,
                headers={"connection": "close"},
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise HttpError(415, "compressed request bodies are not taken", code="unsupported_media_type")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > self._limits.max_body_bytes):
            raise _too_large(self._limits)

    def _check_origin(self, origin: str, host: str) -> None:
        if ANY_ORIGIN in self._allowed_origins or origin in self._allowed_origins:
            return
        scheme, _, authority = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if port is None or authority.removesuffix(port) != host.removesuffix(port):
            message = "web pages of this origin may not use the server; it can be allowed at start"
            raise HttpError(403, message, code="origin_not_allowed")


class Exchange:
    """One request and its response: the `receive` and `send` that the application gets, and what came of them."""

    def __init__(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send, limits: HttpLimits
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        client_id = headers.get(b"x-request-id", b"")
        self._request_id = client_id if _REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = self._request_id.decode()
        self._deadline = asyncio.get_running_loop().time() + limits.body_timeout_s
        self._num_body_bytes = 0
        self._has_unread_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._fault: HttpError | None = None  # what is wrong with the body; goes before whatever the app makes of it
        self._withheld: Message | None = None  # start of an error response that is no error object
        self._has_started = False
        self._is_complete = False
        self._has_left = False
        self._watcher: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self, app: App) -> None:
        """Run the application to its end, and answer in its place where it did not."""
        failure: BaseException | None = None
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if self._has_left:
                logger.debug("request %s: the client left", self._request_id.decode())
                return
            failure = HttpError(503, "the server is shutting down", code="shutting_down", retry_after_s=1)
        except Exception as error:
            failure = error
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
        await self._finish(failure)

    async def _finish(self, failure: BaseException | None) -> None:
        if self._has_left:
            logger.debug("request %s ended without its client", self._request_id.decode(), exc_info=failure)
            return
        error = self._fault or (None if failure is None else http_error_of(failure))
        if failure is not None and self._fault is None and is_for_the_log(failure):
            logger.error("request %s failed", self._request_id.decode(), exc_info=failure)
        if self._has_started:
            return  # uvicorn closes the connection if the response is incomplete, and the client sees it cut off
        if error is None and self._withheld is not None:
            kept = {name.decode(): value.decode("latin-1") for name, value in _kept_headers(self._withheld)}
            error = http_error_of_status(self._withheld["status"], kept)
        await self.respond(error or http_error_of_status(500, {}))

    async def respond(self, error: HttpError) -> None:
        """Send an error as the whole response."""
        response = error.to_response()
        self._is_complete = True
        await self._start({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await self._send({"type": "http.response.body", "body": response.body, "more_body": False})

    async def receive(self) -> Message:
        """The application's `receive`: the body within its limits, then the disconnect."""
        if self._watcher is not None:
            await self._ended.wait()
            return {"type": "http.disconnect"}
        if self._fault is not None:
            raise self._fault
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._fault = HttpError(408, "the request body took too long", code="request_timeout")
            raise self._fault from None
        if message["type"] != "http.request":
            self._has_left = not self._is_complete
            return message
        self._num_body_bytes += len(message.get("body", b""))
        if self._num_body_bytes > self._limits.max_body_bytes:
            self._fault = _too_large(self._limits)
            raise self._fault
        if not message.get("more_body", False):
            self._has_unread_body = False
            self._watch()
        return message

    def _watch(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._watcher = asyncio.create_task(self._cancel_on_disconnect(task))

    async def _cancel_on_disconnect(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._ended.set()  # also after a complete response, when uvicorn says the same
        if not self._is_complete:
            self._has_left = True
            task.cancel()

    async def send(self, message: Message) -> None:
        """The application's `send`. Called for every streamed token, so the usual case comes first and does little."""
        if self._has_started:
            if not message.get("more_body", False):
                self._is_complete = True
            await self._send(message)
        elif message["type"] == "http.response.start" and self._withheld is None:
            if self._fault is not None or (message["status"] >= 400 and not _is_json(message)):
                self._withheld = message
            else:
                await self._start(message)

    async def _start(self, message: Message) -> None:
        self._has_started = True
        headers = [*message.get("headers", ()), (b"x-request-id", self._request_id)]
        if self._has_unread_body:
            # The rest of the body may never come (`Expect: 100-continue`), and must not pass for the next request.
            headers.append((b"connection", b"close"))
        await self._send({**message, "headers": headers})


def _is_json(message: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"application/json")
        for name, value in message.get("headers", ())
    )


def _kept_headers(message: Message) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in message.get("headers", ()) if name.lower() in _KEPT_HEADERS]


def _without_port(host: str) -> str:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".")


def _too_large(limits: HttpLimits) -> HttpError:
    message = f"the request body is larger than {limits.max_body_bytes} bytes"
    return HttpError(413, message, code="request_too_large")
