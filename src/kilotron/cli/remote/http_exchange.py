"""One HTTP request and its response, each on a connection of its own. Knows no endpoint.

A body of success may be handed on piece by piece as it arrives, without a task switch in between.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

from kilotron.cli.remote.response_parser import ResponseParser
from kilotron.cli.remote.server_address import ServerAddress
from kilotron.cli.remote.server_error import ServerError, error_of_response

_MAX_BODY_BYTES = 4 << 20
_OK = 200


class Connector:
    """Opens connections to one server."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self._ssl = ssl.create_default_context() if address.scheme == "https" else None
        head = [f"Host: {address.authority}", "User-Agent: kilotron", "Connection: close"]
        if address.api_key is not None:
            head.append(f"Authorization: Bearer {address.api_key}")
        self._head = "\r\n".join(head)

    async def get(self, path: str, *, timeout_s: float) -> bytes:
        """The body of a resource.

        Raises:
            ServerError: there is none; the server answered otherwise, or not at all.
        """
        body = bytearray()

        def keep(piece: bytes) -> None:
            if len(body) + len(piece) > _MAX_BODY_BYTES:
                raise ServerError(f"{self.address.url}{path} is longer than {_MAX_BODY_BYTES} bytes")
            body.extend(piece)

        await self._exchange(self._request("GET", path, b""), keep, timeout_s)
        return bytes(body)

    def post_request(self, path: str, body: bytes) -> bytes:
        """A request with a JSON body, ready to be sent."""
        return self._request("POST", path, body)

    async def stream(self, request: bytes, on_piece: Callable[[bytes], None], *, timeout_s: float) -> None:
        """Sends a request and hands on the response's body until its end. Cancelling it closes the connection.

        Args:
            request: of `post_request`.
            on_piece: gets each piece of a body with status 200, as soon as it is there; may raise ServerError.
            timeout_s: for all of it.

        Raises:
            ServerError: the server answered otherwise, or not at all.
        """
        await self._exchange(request, on_piece, timeout_s)

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = f"{method} {self.address.prefix}{path} HTTP/1.1\r\n{self._head}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode("ascii") + b"\r\n" + body

    async def _exchange(self, request: bytes, on_piece: Callable[[bytes], None], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                exchange = await self._connect(request, on_piece)
                try:
                    reply = await exchange.done
                finally:
                    exchange.abort()
        except TimeoutError:
            raise ServerError(f"no end of the answer of {self.address.url} after {timeout_s:g} s") from None
        if reply.status != _OK:
            raise error_of_response(reply.status, reply.headers, reply.body)

    async def _connect(self, request: bytes, on_piece: Callable[[bytes], None]) -> "_Exchange":
        loop = asyncio.get_running_loop()
        address = self.address
        try:
            _, exchange = await loop.create_connection(
                lambda: _Exchange(request, on_piece, loop.create_future()), address.host, address.port, ssl=self._ssl
            )
        except ssl.SSLError as error:
            raise ServerError(f"no TLS connection to {address.url}: {error.reason or error}") from error
        except TimeoutError:  # an OSError too, but ours when it is the limit of all
            raise
        except OSError as error:
            reason = f" ({error.strerror})" if error.strerror and not isinstance(error, ConnectionRefusedError) else ""
            raise NoServerError(
                f"no server at {address.url}{reason}; start one with: kilotron serve --port {address.port}"
            ) from error
        return exchange


class NoServerError(ServerError):
    """Nobody takes connections there."""


class _Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    """What was not handed on: that of a failure."""


class _Exchange(asyncio.Protocol):
    def __init__(self, request: bytes, on_piece: Callable[[bytes], None], done: "asyncio.Future[_Reply]") -> None:
        self.done = done
        self._request = request
        self._on_piece = on_piece
        self._parser = ResponseParser()
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._transport: asyncio.Transport | None = None

    def abort(self) -> None:
        """Leaves; the server learns it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        parser = self._parser
        try:
            for piece in parser.feed(data):
                if parser.status == _OK:
                    self._on_piece(piece)
                else:
                    self._keep(piece)
        except ServerError as error:
            self._fail(error)
            return
        if parser.is_complete:
            self._finish()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.done.done():
            self._fail(ServerError(f"the connection to the server broke: {exc}"))
        self._end()
        self._transport = None

    def _end(self) -> None:
        if self.done.done():
            return
        try:
            self._parser.end()
        except ServerError as error:
            self._fail(error)
        else:
            self._finish()

    def _keep(self, piece: bytes) -> None:
        self._rest_bytes += len(piece)
        if self._rest_bytes <= _MAX_BODY_BYTES:
            self._rest.append(piece)

    def _finish(self) -> None:
        self.done.set_result(_Reply(self._parser.status, self._parser.headers, b"".join(self._rest)))

    def _fail(self, error: ServerError) -> None:
        self.done.set_exception(error)
