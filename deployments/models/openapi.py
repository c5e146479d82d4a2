"""Adds to FastAPI's description the calls that FastAPI does not serve, and the bodies that it does
not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from deployments.openapi import document_security
from deployments.problems import document_protocol_errors
from moyin.text.protocol.anthropic.wire import CountBody, MessagesBody
from moyin.text.protocol.ollama import wire as ollama
from moyin.text.protocol.openai.images import ImagesBody
from moyin.text.protocol.openai.wire import ChatBody, EmbeddingBody

__all__ = ["describe"]

_EVENTS, _LINES = "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class _Call:
    """``name`` sets its schemas apart; ``streams`` is the type of a streamed answer."""

    path: str
    name: str
    body: type[BaseModel]
    streams: str | None
    summary: str
    description: str


_CALLS = (
    _Call(
        "/chat/completions",
        "ChatBody",
        ChatBody,
        _EVENTS,
        "OpenAI chat completion",
        "An answer, whole or as server-sent events. `model` is a name that `GET /models` lists; "
        "`auto` takes the cheapest able back end. Members that are not listed here pass through "
        "to back ends of the same format.",
    ),
    _Call(
        "/embeddings",
        "EmbedBody",
        EmbeddingBody,
        None,
        "OpenAI embeddings",
        "A vector for each input, from any back end that makes them.",
    ),
    _Call(
        "/messages",
        "MessagesBody",
        MessagesBody,
        _EVENTS,
        "Anthropic message",
        "An answer, whole or as server-sent events, in Anthropic's format, from any back end.",
    ),
    _Call(
        "/ollama/api/chat",
        "OllamaChatCodec",
        ollama.ChatBody,
        _LINES,
        "Ollama chat",
        "An answer in Ollama's format, as lines of JSON unless `stream` is false, from any back "
        "end. `num_ctx` is chosen by the length of the prompt where it is not given.",
    ),
    _Call(
        "/ollama/api/generate",
        "OllamaGenerateCodec",
        ollama.GenerateBody,
        _LINES,
        "Ollama generate",
        "The same for a single prompt.",
    ),
    _Call(
        "/ollama/api/embed",
        "OllamaEmbedCodec",
        ollama.EmbedBody,
        None,
        "Ollama embed",
        "A vector for each input, from any back end that makes them.",
    ),
    _Call(
        "/ollama/api/embeddings",
        "OllamaEmbeddingsCodec",
        ollama.EmbeddingsBody,
        None,
        "Ollama embeddings",
        "The older call for the vector of one prompt.",
    ),
)
_BODIES: Mapping[str, type[BaseModel]] = {
    "/messages/count_tokens": CountBody,
    "/images/generations": ImagesBody,
    "/ollama/api/show": ollama.ShowBody,
}
_HEADERS = {
    "x-request-id": "Names the call in `GET /requests/{request_id}`.",
    "x-moyin-backend": "The back end that answered.",
    "x-moyin-model": "The model that answered.",
    "x-moyin-route": "Why it was chosen: a word, and after `; ` the quality that was weighed.",
    "x-moyin-cache": "`hit` or `miss`, where the alias keeps answers.",
    "x-moyin-estimated": "`true` where the back end states no usage: the answer says the estimate "
    "that is booked.",
    "x-moyin-cost-usd": "What it cost; a stream says it in a comment after its last event.",
}


_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`respond-async` makes a durable job of the call.",
    "schema": {"type": "string"},
}


_PARAMETERS = [
    _PREFER,
    {
        "name": "x-moyin-quality",
        "in": "header",
        "description": "Lowest probability of a good answer that is accepted, where the router "
        "chooses the model. 400 `quality_unreachable` names the best when none reaches it.",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
    },
    {
        "name": "x-moyin-usd-per-bad-answer",
        "in": "header",
        "description": "Cost of a useless answer in US dollars, where the router chooses the "
        "model. 0: only money and time are weighed.",
        "schema": {"type": "number", "minimum": 0},
    },
]


def describe(app: FastAPI, is_public: Callable[[str], bool]) -> None:
    """Make ``app.openapi()`` complete.

    Args:
        is_public: tells by its path in the description whether a route needs no key.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, is_public)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI, is_public: Callable[[str], bool]) -> dict[str, Any]:
    described = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": "/v1"}],
    )
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for call in _CALLS:
        described["paths"][call.path] = {
            "post": {
                "tags": ["text"],
                "summary": call.summary,
                "description": call.description,
                "operationId": call.name,
                "parameters": _PARAMETERS,
                "requestBody": _body(call.body, call.name, schemas),
                "responses": {
                    "200": _answer(call.streams),
                    "202": {"description": "The job that will answer; `Location` is its path."},
                    "default": {"description": "The protocol's error"},
                },
            }
        }
    for path, shape in _BODIES.items():
        described["paths"][path]["post"]["requestBody"] = _body(shape, shape.__name__, schemas)
    described["paths"]["/images/generations"]["post"]["parameters"] = [_PREFER]
    document_protocol_errors(described)
    document_security(described, is_public)
    return described


def _body(shape: type[BaseModel], name: str, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    # All protocols have a Tool and a Message: names are kept apart by the call's.
    content = {"schema": _renamed(schema, name, schemas)}
    return {"required": True, "content": {"application/json": content}}


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


def _answer(streams: str | None) -> dict[str, Any]:
    headers = {
        name: {"description": told, "schema": {"type": "string"}} for name, told in _HEADERS.items()
    }
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams is not None:
        content[streams] = {"schema": {"type": "string"}}
    return {"description": "The answer", "headers": headers, "content": content}
