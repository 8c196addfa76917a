"""The HTTP application over the bundled model in this process, and a client for it; for tests of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from kilotron.config import ServeConfig
from kilotron.coordinator.local_client import LocalClient
from kilotron.coordinator.wire import EngineFacts
from kilotron.text_generation_server.app import ResponseCounter, build_app
from kilotron.text_generation_server.guard import Guard
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.tokenization.tokenizer import Tokenizer


class DirectRenderer:
    """Renders chat templates in this process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def render(self, messages: Any, *, variables: Any = None, **options: Any) -> str:
        return self._tokenizer.apply_chat_template(messages, **options, **(variables or {}))


@dataclass(frozen=True)
class Service:
    """One engine for all tests of the session, and what makes applications of it."""

    client: LocalClient
    facts: EngineFacts
    tokenizer: Tokenizer
    has_template: bool = True

    def app(self, client: Any = None, **options: Any) -> Any:
        service_client = client or self.client
        config = ServeConfig(**options)
        renderer = DirectRenderer(self.tokenizer) if self.has_template else None
        inner = build_app(service_client, self.tokenizer, config, renderer)
        guard = Guard(inner, HttpLimits(), allowed_hosts=None, allowed_origins=(), is_draining=lambda: False)
        return ResponseCounter(guard, service_client)

    @asynccontextmanager
    async def open(self, client: Any = None, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.ASGITransport(app=self.app(client, **options))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http:
            yield http

    def run(self, test: Callable[[httpx2.AsyncClient], Awaitable[Any]], **options: Any) -> Any:
        """Runs a test with an HTTP client."""

        async def main() -> Any:
            async with self.open(**options) as http:
                return await test(http)

        return asyncio.run(main())

    def post(self, path: str, body: Any = None, *, headers: Any = None, content: Any = None, **options: Any) -> Any:
        """One POST."""

        async def test(http: httpx2.AsyncClient) -> Any:
            return await http.post(path, json=body, content=content, headers=headers)

        return self.run(test, **options)

    def get(self, path: str, **options: Any) -> Any:
        """One GET."""

        async def test(http: httpx2.AsyncClient) -> Any:
            return await http.get(path)

        return self.run(test, **options)


def events_of(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    blocks = text.split("\n\n")
    assert blocks[-1] == ""
    assert blocks[-2] == "data: [DONE]"
    lines = [block for block in blocks[:-2] if not block.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]
