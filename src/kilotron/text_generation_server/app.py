"""The HTTP application: every route in one table, over one ServiceClient.

Errors leave it as exceptions: the guard around it makes the responses (and cancels whoever's client has left). Imports
no torch.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from kilotron.config import ServeConfig
from kilotron.coordinator.service_client import ServiceClient
from kilotron.errors import NoPlaceInQueueError
from kilotron.text_generation_server.admin import (
    AbortRequest,
    AbortResponse,
    AdminEndpoints,
    SuspendRequest,
    TimelineResponse,
    VerbRequest,
    VerbResponse,
)
from kilotron.text_generation_server.chat_completions import ChatCompletionsEndpoint
from kilotron.text_generation_server.chat_prompt import ChatPrompts
from kilotron.text_generation_server.chat_request import ChatRequest
from kilotron.text_generation_server.completion_request import CompletionRequest
from kilotron.text_generation_server.completions import CompletionsEndpoint
from kilotron.text_generation_server.health import HealthEndpoints, package_version
from kilotron.text_generation_server.http_exchange import App, Message, Receive, Scope, Send
from kilotron.text_generation_server.legacy_api import LegacyEndpoint, LegacyRequest, LegacyResponse
from kilotron.text_generation_server.metrics import MetricsEndpoint
from kilotron.text_generation_server.models import ModelsEndpoints
from kilotron.text_generation_server.openapi import ApiRoute, OpenApiEndpoint
from kilotron.text_generation_server.response_types import ChatCompletion, Completion, ModelCard, ModelList
from kilotron.text_generation_server.server_state import ChatRenderer, ServerState
from kilotron.text_generation_server.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeEndpoints,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from kilotron.tokenization.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class Application:
    """An ASGI application; `routes` is all there is of it.

    Args:
        state: shared by all endpoints.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        routes = [*generation_routes(state), *service_routes(state)]
        description = OpenApiEndpoint(routes, package_version(), lambda: state.model_name)
        self.routes = (
            *routes,
            ApiRoute(path="/openapi.json", method="GET", endpoint=description.show, summary="This description."),
        )
        self._router = Router(
            [Route(route.path, route.endpoint, methods=[route.method]) for route in self.routes],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router(scope, receive, send)
        except NoPlaceInQueueError as refusal:
            self.state.gate.close(refusal)
            raise


def build_app(
    client: ServiceClient, tokenizer: Tokenizer | None, config: ServeConfig, renderer: ChatRenderer | None
) -> Application:
    """The application over a service.

    Args:
        client: of the service.
        tokenizer: the model's; None where only ids go in.
        config: the server's options.
        renderer: of the model's chat template, started by the caller; None where there is no template.
    """
    return Application(ServerState(client=client, tokenizer=tokenizer, config=config, renderer=renderer))


def generation_routes(state: ServerState) -> list[ApiRoute]:
    """What uses the model. Each OpenAI route also without /v1, as Megatron's server has them."""
    prompts = ChatPrompts(state)
    completions, chat = CompletionsEndpoint(state), ChatCompletionsEndpoint(state, prompts)
    tokenizer, legacy = TokenizeEndpoints(state, prompts), LegacyEndpoint(state)
    routes = []
    for prefix in ("/v1", ""):
        routes += [
            ApiRoute(
                path=f"{prefix}/completions",
                method="POST",
                endpoint=completions,
                summary="Continue prompts.",
                request=CompletionRequest,
                response=Completion,
            ),
            ApiRoute(
                path=f"{prefix}/chat/completions",
                method="POST",
                endpoint=chat,
                summary="Answer a conversation.",
                request=ChatRequest,
                response=ChatCompletion,
            ),
        ]
    return [
        *routes,
        ApiRoute(
            path="/tokenize",
            method="POST",
            endpoint=tokenizer.tokenize,
            summary="Text or conversation to token ids.",
            request=TokenizeRequest,
            response=TokenizeResponse,
        ),
        ApiRoute(
            path="/detokenize",
            method="POST",
            endpoint=tokenizer.detokenize,
            summary="Token ids to text.",
            request=DetokenizeRequest,
            response=DetokenizeResponse,
        ),
        ApiRoute(
            path="/tokenizer_info",
            method="GET",
            endpoint=tokenizer.show_info,
            summary="Special tokens and chat template.",
            response=TokenizerInfo,
        ),
        ApiRoute(
            path="/api",
            method="PUT",
            endpoint=legacy.generate,
            summary="Megatron's older generation route.",
            request=LegacyRequest,
            response=LegacyResponse,
        ),
    ]


def service_routes(state: ServerState) -> list[ApiRoute]:
    """What tells of the service, and what the operator does with it."""
    models, health, admin = ModelsEndpoints(state), HealthEndpoints(state), AdminEndpoints(state)
    metrics = MetricsEndpoint(state)
    gets: list[tuple[str, Endpoint, str, type[msgspec.Struct] | None]] = [
        ("/v1/models", models.list_all, "The models served.", ModelList),
        ("/models", models.list_all, "The models served.", ModelList),
        ("/v1/models/{model:path}", models.show, "One model.", ModelCard),
        ("/health", health.live, "Whether this process lives.", None),
        ("/v1/health", health.live, "Whether this process lives.", None),
        ("/livez", health.live, "Whether this process lives.", None),
        ("/ready", health.ready, "Whether a request would be served.", None),
        ("/readyz", health.ready, "Whether a request would be served.", None),
        ("/version", health.show_version, "The server's version.", None),
        ("/debug/requests/{request_id}", admin.show_timeline, "What happened to a request.", TimelineResponse),
    ]
    verbs: list[tuple[str, Endpoint, type[msgspec.Struct]]] = [
        ("pause", admin.pause, VerbRequest),
        ("unpause", admin.unpause, VerbRequest),
        ("suspend", admin.suspend, SuspendRequest),
        ("resume", admin.resume, VerbRequest),
    ]
    return [
        *(
            ApiRoute(path=path, method="GET", endpoint=endpoint, summary=summary, response=response)
            for path, endpoint, summary, response in gets
        ),
        ApiRoute(path="/metrics", method="GET", endpoint=metrics.show, summary="Prometheus.", media_type="text/plain"),
        *(
            ApiRoute(
                path=f"/admin/{verb}",
                method="POST",
                endpoint=endpoint,
                summary=f"{verb.capitalize()} all engines.",
                request=request,
                response=VerbResponse,
                is_body_required=False,
            )
            for verb, endpoint, request in verbs
        ),
        ApiRoute(
            path="/admin/abort",
            method="POST",
            endpoint=admin.abort,
            summary="End anybody's request.",
            request=AbortRequest,
            response=AbortResponse,
        ),
        ApiRoute(
            path="/v1/requests/{request_id}/abort",
            method="POST",
            endpoint=admin.abort_own,
            summary="End a request of the same API key.",
            response=AbortResponse,
        ),
    ]


class ResponseCounter:
    """Counts responses by status; stands outside everything else, since the guard answers as well.

    Args:
        app: the guarded application.
        client: keeps the counts, as "http_responses/200".
        has_access_log: log a line per request.
    """

    def __init__(self, app: App, client: ServiceClient, *, has_access_log: bool = False) -> None:
        self._app = app
        self._client = client
        self._has_access_log = has_access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 0, time.monotonic()

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._client.count(f"http_responses/{status}")
            await send(message)

        try:
            await self._app(scope, receive, count)
        finally:
            if self._has_access_log:
                seconds = time.monotonic() - started
                request_id = scope.get("state", {}).get("request_id", "")
                _log.info("%s %s %d in %.3f s %s", scope["method"], scope["path"], status, seconds, request_id)
