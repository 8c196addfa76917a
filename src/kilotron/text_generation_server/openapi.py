"""GET /openapi.json: made of the routes and of the structs that they read and write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kilotron.text_generation_server.json_response import json_response
from kilotron.text_generation_server.response_types import ErrorResponse

_STATUS_CODES = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No valid API key.",
    "403": "Not allowed.",
    "404": "No such model, request or route.",
    "405": "The route does not take this method.",
    "409": "It contradicts the present state.",
    "413": "The body is too large.",
    "429": "Too many requests under way for this key.",
    "503": "Not now; Retry-After says when.",
    "default": "Something went wrong.",
}
_REF_TEMPLATE = "#/components/schemas/{name}"


@dataclass(frozen=True, kw_only=True)
class ApiRoute:
    """A route as the application and its description know it."""

    path: str
    method: str
    endpoint: Any
    """A bound async method that takes a Request, or an ASGI application."""
    summary: str
    request: type[msgspec.Struct] | None = None
    response: type[msgspec.Struct] | None = None
    """None: the media type is another one, or the shape is free."""
    media_type: str = "application/json"
    is_body_required: bool = True


class OpenApiEndpoint:
    """The description; made when first asked for."""

    def __init__(self, routes: Sequence[ApiRoute], version: str, model_name: Callable[[], str]) -> None:
        self._routes = routes
        self._version = version
        self._model_name = model_name
        self._document: dict[str, Any] | None = None

    async def show(self, request: Request) -> Response:
        """The document."""
        if self._document is None:
            document = describe_routes(self._routes, self._version)
            _name_model(document, self._model_name())
            self._document = document
        return json_response(self._document)


def describe_routes(routes: Sequence[ApiRoute], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of some routes."""
    structs = {route.request for route in routes} | {route.response for route in routes} | {ErrorResponse}
    kinds = sorted((kind for kind in structs if kind is not None), key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF_TEMPLATE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path.replace(":path}", "}"), {})[route.method.lower()] = _describe(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kilotron", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _name_model(document: dict[str, Any], name: str) -> None:
    """Requests' `model` can only be the one that is served."""
    for schema in document["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is False and "model" in properties:
            properties["model"] = {"enum": [name, "", None], "default": None}


def _describe(route: ApiRoute) -> dict[str, Any]:
    content: dict[str, Any] = {route.media_type: {"schema": _schema_of(route.response)}}
    if route.request is not None and "stream" in route.request.__struct_fields__:
        content["text/event-stream"] = {"schema": {}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {"200": {"description": "Done.", "content": content}}
        | {
            code: {"description": text, "content": {"application/json": {"schema": _schema_of(ErrorResponse)}}}
            for code, text in _STATUS_CODES.items()
        },
    }
    names = [part[1:-1].removesuffix(":path") for part in route.path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.request is not None:
        operation["requestBody"] = {
            "required": route.is_body_required,
            "content": {"application/json": {"schema": _schema_of(route.request)}},
        }
    return operation


def _schema_of(kind: type[msgspec.Struct] | None) -> dict[str, Any]:
    return {} if kind is None else {"$ref": _REF_TEMPLATE.format(name=kind.__name__)}
