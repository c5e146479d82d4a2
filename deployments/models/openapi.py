"""Adds to FastAPI's description the two calls that FastAPI does not serve."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from moyin.protocols.anthropic.wire import MessagesBody
from moyin.protocols.openai.wire import ChatBody

__all__ = ["describe"]

_CALLS: tuple[tuple[str, type[BaseModel], str, str], ...] = (
    (
        "/chat/completions",
        ChatBody,
        "OpenAI chat completion",
        "An answer, whole or as server-sent events. `model` is a name that `GET /models` lists; "
        "`auto` takes the cheapest able back end. Members that are not listed here pass through "
        "to back ends of the same format.",
    ),
    (
        "/messages",
        MessagesBody,
        "Anthropic message",
        "An answer, whole or as server-sent events, in Anthropic's format, from any back end.",
    ),
)
_HEADERS = {
    "x-request-id": "Names the call in `GET /requests/{request_id}`.",
    "x-moyin-backend": "The back end that answered.",
    "x-moyin-model": "The model that answered.",
    "x-moyin-route": "Why it was chosen.",
    "x-moyin-cost-usd": "What it cost; a stream says it in a comment after its last event.",
}


def describe(app: FastAPI) -> None:
    """Make ``app.openapi()`` complete."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": "/v1"}],
    )
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for path, shape, summary, description in _CALLS:
        schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
        # Both protocols have a Tool and a Message: names are kept apart by the call's.
        prefix = shape.__name__
        text = {"schema": _renamed(schema, prefix, schemas)}
        described["paths"][path] = {
            "post": {
                "tags": ["text"],
                "summary": summary,
                "description": description,
                "operationId": prefix,
                "requestBody": {"required": True, "content": {"application/json": text}},
                "responses": {"200": _answer(), "default": {"description": "The protocol's error"}},
            }
        }
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"key": []}]
    return described


def _renamed(schema: dict[str, Any], prefix: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to ``schema``, whose definitions move to ``schemas`` under prefixed names."""
    definitions = schema.pop("$defs", {})
    for name, definition in {**definitions, "": schema}.items():
        schemas[prefix + name] = _refer(definition, prefix)
    return {"$ref": f"#/components/schemas/{prefix}"}


def _refer(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {name: _refer(item, prefix) for name, item in value.items()}
    if isinstance(value, list):
        return [_refer(item, prefix) for item in value]
    base = "#/components/schemas/"
    if isinstance(value, str) and value.startswith(base):
        return base + prefix + value.removeprefix(base)
    return value


def _answer() -> dict[str, Any]:
    headers = {
        name: {"description": told, "schema": {"type": "string"}} for name, told in _HEADERS.items()
    }
    content = {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return {"description": "The answer", "headers": headers, "content": content}
