"""HttpServer: uvicorn on a socket that is already bound, within HttpLimits, stopped by an event instead of signals.

Knows nothing of routes; the supervisor owns the signals.
"""

import asyncio
import contextlib
import importlib.util
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from kilotron.text_generation_server.http_connection import BoundedConfig
from kilotron.text_generation_server.http_limits import HttpLimits

_DATE_HEADER_PERIOD_S = 1.0
# How long a cancelled request may take to write why it ends.
_LAST_WORDS_TIMEOUT_S = 1.0
# Kernel memory that one reader who does not read can hold (Linux doubles it). Tokens need far less.
_SEND_BUFFER_BYTES = 256 * 1024


class HttpServer(uvicorn.Server):
    """Serves one ASGI application on one listening socket until it is told to stop.

    Args:
        app: The whole ASGI application, guard included.
        limits: What one peer may send, hold and delay.
        listener: A bound stream socket; is closed when serving ends.
        tls: Context of `build_tls_context` for https; None for http.
        drain_timeout_s: After `should_stop`, running requests have so long to finish before they are cancelled.
        has_lifespan: Run the application's startup and shutdown.
    """

    def __init__(
        self,
        app: Any,
        limits: HttpLimits,
        listener: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        drain_timeout_s: float = 30.0,
        has_lifespan: bool = False,
    ) -> None:
        config = BoundedConfig(
            app,
            limits,
            http=_protocol_class(),
            ws="none",
            interface="asgi3",
            lifespan="on" if has_lifespan else "off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=drain_timeout_s,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        super().__init__(config)
        self._limits = limits
        self._listener = listener
        self._should_stop = asyncio.Event()
        bound_the_kernel(listener, limits)

    async def serve_until(self, should_stop: asyncio.Event) -> None:
        """Accept and answer until the event is set; then finish what runs and return.

        Idle connections are closed at once, and each busy one after its response.
        """
        self._should_stop = should_stop
        await self.serve(sockets=[self._listener])
        if self.server_state.tasks:  # cancelled a moment ago
            await asyncio.wait(list(self.server_state.tasks), timeout=_LAST_WORDS_TIMEOUT_S)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until no request runs, and say whether that was in time.

        The listener stays open, so that newcomers hear from the guard that the server is draining. Set the event of
        `serve_until` afterwards.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while tasks := list(self.server_state.tasks):
                    await asyncio.wait(tasks)
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """End every running request now; each may still write its last words. Call it after the event is set."""
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept. uvicorn's own gives a TLS handshake a minute, during which nothing else bounds the peer."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(STARTUP_FAILURE)
        self.servers = [
            await asyncio.get_running_loop().create_server(
                self._create_protocol,
                sock=self._listener,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self._limits.header_timeout_s if self.config.ssl else None,
                ssl_shutdown_timeout=self._limits.linger_timeout_s if self.config.ssl else None,
                backlog=self.config.backlog,
            )
        ]
        self.started = True

    def _create_protocol(self) -> asyncio.Protocol:
        create: Any = self.config.http_protocol_class  # typed as any protocol, made as one of ours
        protocol: asyncio.Protocol = create(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def main_loop(self) -> None:
        """Wait for the event; uvicorn's own polls ten times a second. The tick renews the Date header."""
        while not await self.on_tick(0) and not self._should_stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_HEADER_PERIOD_S):
                    await self._should_stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signals: the supervisor has them."""
        yield


def bound_the_kernel(listener: socket.socket, limits: HttpLimits) -> None:
    """Let accepted connections hold little in the kernel, and end when the peer takes nothing of it for too long."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    if listener.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(limits.send_stall_timeout_s * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed, for `asyncio.Runner(loop_factory=...)`; None means asyncio's own."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _protocol_class() -> type[asyncio.Protocol]:
    if importlib.util.find_spec("httptools") is None:
        from kilotron.text_generation_server.http_protocol_h11 import H11HttpProtocol

        return H11HttpProtocol
    from kilotron.text_generation_server.http_protocol import HttpProtocol

    return HttpProtocol
