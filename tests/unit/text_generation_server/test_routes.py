"""The table of routes: every one of them asks for a key, except those that say whether the server lives."""

import asyncio

import httpx2
import pytest

from kilotron.config import ServeConfig
from kilotron.text_generation_server.app import build_app
from kilotron.text_generation_server.authentication import OPEN_PATHS, Authentication, load_key_ring
from kilotron.text_generation_server.guard import Guard
from kilotron.text_generation_server.http_limits import HttpLimits
from serving import Service

KEYS = {"KILOTRON_API_KEY": "sk-user-" + "a" * 32, "KILOTRON_ADMIN_KEY": "sk-admin-" + "b" * 32}


def ask(service: Service, method: str, path: str, key: str | None) -> int:
    inner = build_app(service.client, service.tokenizer, ServeConfig(), None)
    closed = Authentication(inner, load_key_ring(KEYS), is_local=True)
    app = Guard(closed, HttpLimits(), allowed_hosts=None, allowed_origins=(), is_draining=lambda: False)

    async def main() -> int:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return (await http.request(method, path, headers=headers, json={})).status_code

    return asyncio.run(main())


@pytest.fixture
def routes(service: Service) -> list[tuple[str, str]]:
    app = build_app(service.client, service.tokenizer, ServeConfig(), None)
    return [
        (route.method, route.path.replace("{model:path}", "x").replace("{request_id}", "x")) for route in app.routes
    ]


def test_every_route_but_health_asks_for_a_key(service: Service, routes: list[tuple[str, str]]) -> None:
    answers = {(method, path): ask(service, method, path, None) for method, path in routes}
    open_routes = {path for (_, path), status in answers.items() if status != 401}
    assert open_routes == set(OPEN_PATHS)


def test_only_the_admin_key_opens_admin_routes(service: Service, routes: list[tuple[str, str]]) -> None:
    for method, path in routes:
        if path.startswith("/admin/"):
            assert ask(service, method, path, KEYS["KILOTRON_API_KEY"]) in (401, 403)
            assert ask(service, method, path, KEYS["KILOTRON_ADMIN_KEY"]) not in (401, 403)


def test_no_path_and_method_stand_twice(routes: list[tuple[str, str]]) -> None:
    assert len(set(routes)) == len(routes)
