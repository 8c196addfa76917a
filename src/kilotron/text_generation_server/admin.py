"""The operator's verbs (POST /admin/...), a client's abort of its own request, and a request's timeline."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kilotron.config import KVMode
from kilotron.coordinator.wire import Verb
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.json_response import json_response, read_struct
from kilotron.text_generation_server.server_state import ServerState, owner_of


class SuspendRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What becomes of the KV cache while the engines are suspended."""

    kv_mode: KVMode = "persist"


class VerbRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Nothing to say."""


class AbortRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whose request to end."""

    request_id: str


class VerbResponse(msgspec.Struct):
    """The state after the verb took effect, and the memory it gave back."""

    state: str
    freed_bytes: int


class AbortResponse(msgspec.Struct):
    """The request that was ended."""

    request_id: str
    status: str = "aborted"


class TimelineResponse(msgspec.Struct):
    """What happened to a request, oldest first."""

    request_id: str
    events: list[dict[str, Any]]


class AdminEndpoints:
    """Only authentication tells who may call them."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def pause(self, request: Request) -> Response:
        """Stop after the running step; requests wait."""
        await read_struct(request, VerbRequest, is_optional=True)
        return await self._apply("pause")

    async def unpause(self, request: Request) -> Response:
        """Go on."""
        await read_struct(request, VerbRequest, is_optional=True)
        return await self._apply("unpause")

    async def suspend(self, request: Request) -> Response:
        """Give the KV cache's memory back."""
        body = await read_struct(request, SuspendRequest, is_optional=True)
        return await self._apply("suspend", body.kv_mode)

    async def resume(self, request: Request) -> Response:
        """Take the memory again."""
        await read_struct(request, VerbRequest, is_optional=True)
        return await self._apply("resume")

    async def abort(self, request: Request) -> Response:
        """End anybody's request."""
        body = await read_struct(request, AbortRequest)
        return await self._abort(body.request_id, None)

    async def abort_own(self, request: Request) -> Response:
        """End a request of the same API key."""
        return await self._abort(request.path_params["request_id"], owner_of(request.scope))

    async def show_timeline(self, request: Request) -> Response:
        """What happened to a request."""
        request_id = self._state.find_request_id(request.path_params["request_id"])
        events = await self._state.client.read_timeline(request_id)
        if events is None:
            raise HttpError(404, "no such request is known (any more)", param="request_id", code="request_not_found")
        return json_response(TimelineResponse(request_id, events))

    async def _apply(self, verb: Verb, kv_mode: KVMode = "persist") -> Response:
        answer = await self._state.client.control(verb, kv_mode)
        return json_response(VerbResponse(answer.state, answer.freed_bytes))

    async def _abort(self, request_id: str, owner: str | None) -> Response:
        found = self._state.find_request_id(request_id)
        await self._state.client.abort_by_id(found, owner)
        return json_response(AbortResponse(found))
