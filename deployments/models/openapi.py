"""Adds model calls and request bodies, which FastAPI does not know, to the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from deployments.openapi import document_protocol_errors, document_security
from moyin.text.protocol.anthropic.wire import CountBody, MessagesBody
from moyin.text.protocol.ollama import wire as ollama
from moyin.text.protocol.openai.batches import CreateBatch
from moyin.text.protocol.openai.images import ImagesBody
from moyin.text.protocol.openai.operations import ModerationBody, RerankBody, SpeechBody
from moyin.text.protocol.openai.wire import ChatBody, CompletionBody, EmbeddingBody
from moyin.text.protocol.responses.wire import ResponseBody

_SSE, _NDJSON, _JSON = "text/event-stream", "application/x-ndjson", "application/json"
_BINARY = "application/octet-stream"
_OBJECT_SCHEMA: Mapping[str, Any] = {"type": "object"}
_TEXT_SCHEMA: Mapping[str, Any] = {"type": "string"}
_BINARY_SCHEMA: Mapping[str, Any] = {"type": "string", "format": "binary"}


@dataclass(frozen=True, slots=True)
class _CallDescription:
    """The description of a model call in the OpenAPI document.

    Attributes:
        name: operation id, which is also the prefix of schema names.
        stream_type: media type of streamed answers, if the call supports them.
    """

    path: str
    name: str
    body: type[BaseModel]
    stream_type: str | None
    summary: str
    description: str


@dataclass(frozen=True, slots=True)
class _OperationDescription:
    """The description of an operation that only some models support.

    Attributes:
        body: pydantic model of a JSON body, or schemas of a form's required fields by name.
        answers: schemas of the answer by media type.
    """

    path: str
    name: str
    body: type[BaseModel] | Mapping[str, Any]
    summary: str
    description: str
    answers: Mapping[str, Any] = field(default_factory=lambda: {_JSON: _OBJECT_SCHEMA})


_CALLS = (
    _CallDescription(
        "/chat/completions",
        "ChatBody",
        ChatBody,
        _SSE,
        "OpenAI chat completion",
        "Returns an answer, whole or as server-sent events. `model` is a name that `GET /models` "
        "lists; with `auto` the router chooses the model. Members that are not listed here are "
        "passed through to back ends of the same format.",
    ),
    _CallDescription(
        "/completions",
        "CompletionBody",
        CompletionBody,
        _SSE,
        "OpenAI text completion",
        "OpenAI's older call, which continues a text. Back ends of the same format get the request "
        "unchanged. For others the prompt becomes the one message of a chat; they refuse several "
        "prompts, token ids, `n` and `best_of` above 1, `echo`, `logprobs` and `suffix`.",
    ),
    _CallDescription(
        "/responses",
        "ResponseBody",
        ResponseBody,
        _SSE,
        "OpenAI response",
        "Returns a response object, whole or as typed server-sent events, from any back end. Unless "
        "`store` is false it is kept for 30 days, and `previous_response_id` continues it. With "
        "`background` it runs as a durable job, which `GET /responses/{response_id}` shows.",
    ),
    _CallDescription(
        "/embeddings",
        "EmbedBody",
        EmbeddingBody,
        None,
        "OpenAI embeddings",
        "Returns a vector for each input, from any back end that supports embeddings.",
    ),
    _CallDescription(
        "/messages",
        "MessagesBody",
        MessagesBody,
        _SSE,
        "Anthropic message",
        "Returns an answer in Anthropic's format, whole or as server-sent events, from any back end.",
    ),
    _CallDescription(
        "/ollama/api/chat",
        "OllamaChatCodec",
        ollama.ChatBody,
        _NDJSON,
        "Ollama chat",
        "Returns an answer in Ollama's format from any back end, as lines of JSON unless `stream` "
        "is false. Without `num_ctx`, the length of the prompt determines it.",
    ),
    _CallDescription(
        "/ollama/api/generate",
        "OllamaGenerateCodec",
        ollama.GenerateBody,
        _NDJSON,
        "Ollama generate",
        "Answers a single prompt, otherwise like `/ollama/api/chat`.",
    ),
    _CallDescription(
        "/ollama/api/embed",
        "OllamaEmbedCodec",
        ollama.EmbedBody,
        None,
        "Ollama embed",
        "Returns a vector for each input, from any back end that supports embeddings.",
    ),
    _CallDescription(
        "/ollama/api/embeddings",
        "OllamaEmbeddingsCodec",
        ollama.EmbeddingsBody,
        None,
        "Ollama embeddings",
        "Returns the vector of one prompt. Ollama's older form of `/ollama/api/embed`.",
    ),
)
_OPERATIONS = (
    _OperationDescription(
        "/moderations",
        "ModerationBody",
        ModerationBody,
        "OpenAI moderation",
        "Classifies texts and pictures (as `data:` URLs). Without `model` the router chooses one.",
    ),
    _OperationDescription(
        "/rerank",
        "RerankBody",
        RerankBody,
        "Rerank documents",
        "Sorts documents by their relevance to a query, in the format of Cohere's and Jina's APIs. "
        "`/reranking` is the same.",
    ),
    _OperationDescription(
        "/audio/speech",
        "SpeechBody",
        SpeechBody,
        "OpenAI speech",
        "Returns spoken text as audio while it is generated, or as events.",
        {_BINARY: _BINARY_SCHEMA, _SSE: _TEXT_SCHEMA},
    ),
    _OperationDescription(
        "/audio/transcriptions",
        "Transcription",
        {"file": _BINARY_SCHEMA, "model": _TEXT_SCHEMA},
        "OpenAI transcription",
        "Returns the words of an audio file. Other fields of the form are passed through.",
        {_JSON: _OBJECT_SCHEMA, "text/plain": _TEXT_SCHEMA, _SSE: _TEXT_SCHEMA},
    ),
    _OperationDescription(
        "/audio/translations",
        "Translation",
        {"file": _BINARY_SCHEMA, "model": _TEXT_SCHEMA},
        "OpenAI translation of speech",
        "Returns the words of an audio file in English.",
        {_JSON: _OBJECT_SCHEMA, "text/plain": _TEXT_SCHEMA},
    ),
    _OperationDescription(
        "/images/edits",
        "ImageEdit",
        {"image": _BINARY_SCHEMA, "prompt": _TEXT_SCHEMA},
        "OpenAI image edit",
        "Returns pictures made of up to 16 pictures and a prompt. `model` names a model with the "
        "ability `image_edit`, or a render template with inputs `prompt` and `image`.",
        {_JSON: _OBJECT_SCHEMA, _SSE: _TEXT_SCHEMA},
    ),
    _OperationDescription(
        "/images/variations",
        "ImageVariation",
        {"image": _BINARY_SCHEMA},
        "OpenAI image variation",
        "Returns pictures that resemble one.",
    ),
)
_EXTRA_BODIES: Mapping[str, type[BaseModel]] = {
    "/batches": CreateBatch,
    "/messages/count_tokens": CountBody,
    "/images/generations": ImagesBody,
    "/ollama/api/show": ollama.ShowBody,
    "/ollama/api/pull": ollama.PullBody,
}
_HEADERS = {
    "x-request-id": "Identifies the call in `GET /requests/{request_id}`.",
    "x-moyin-backend": "The back end that answered.",
    "x-moyin-model": "The model that answered.",
    "x-moyin-route": "Why the model was chosen: a word, and after `; ` the expected quality and what "
    "was left out of the request (`without tools`).",
    "x-moyin-cache": "`hit` or `miss`, if the alias caches answers.",
    "x-moyin-estimated": "`true` if the back end reports no usage: the usage in the answer, which is "
    "recorded, is an estimate.",
    "x-moyin-cost-usd": "The cost in US dollars. Streams send it in a comment after the last event.",
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`respond-async` runs the call as a durable job.",
    "schema": {"type": "string"},
}
_PARAMETERS = [
    _PREFER,
    {
        "name": "x-moyin-quality",
        "in": "header",
        "description": "Lowest accepted probability of a good answer, if the router chooses the "
        "model. If no model reaches it, error 400 `quality_unreachable` names the best one.",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
    },
    {
        "name": "x-moyin-usd-per-bad-answer",
        "in": "header",
        "description": "Cost of a useless answer in US dollars, if the router chooses the model. "
        "0: the router considers only price and time.",
        "schema": {"type": "number", "minimum": 0},
    },
]


def complete_openapi(app: FastAPI, is_public: Callable[[str], bool]) -> None:
    """Replace ``app.openapi`` by a function that returns the complete document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build_document(app, is_public)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _build_document(app: FastAPI, is_public: Callable[[str], bool]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": "/v1"}],
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for call in _CALLS:
        document["paths"][call.path] = {
            "post": {
                "tags": ["text"],
                "summary": call.summary,
                "description": call.description,
                "operationId": call.name,
                "parameters": _PARAMETERS,
                "requestBody": _describe_body(call.body, call.name, schemas),
                "responses": {
                    "200": _describe_answer(call.stream_type),
                    "202": {"description": "The job that runs the call; `Location` is its path."},
                    "default": {"description": "An error in the protocol's format"},
                },
            }
        }
    for operation in _OPERATIONS:
        document["paths"][operation.path] = {"post": _describe_operation(operation, schemas)}
    for path, body in _EXTRA_BODIES.items():
        document["paths"][path]["post"]["requestBody"] = _describe_body(
            body, body.__name__, schemas
        )
    document["paths"]["/images/generations"]["post"]["parameters"] = [_PREFER]
    document_protocol_errors(document)
    document_security(document, is_public)
    return document


def _describe_operation(
    operation: _OperationDescription, schemas: dict[str, Any]
) -> dict[str, Any]:
    if isinstance(operation.body, Mapping):
        form = {
            "type": "object",
            "properties": operation.body,
            "required": list(operation.body),
            "additionalProperties": True,
        }
        body = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    else:
        body = _describe_body(operation.body, operation.name, schemas)
    content = {media_type: {"schema": schema} for media_type, schema in operation.answers.items()}
    return {
        "tags": ["text"],
        "summary": operation.summary,
        "description": f"{operation.description} If no model has the ability, error 404 "
        "`operation_not_configured` says how to configure one.",
        "operationId": operation.name,
        "requestBody": body,
        "responses": {
            "200": {**_describe_answer(None), "content": content},
            "default": {"description": "An error in the protocol's format"},
        },
    }


def _describe_body(body: type[BaseModel], name: str, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    # Several protocols have schemas with names such as Tool, so names get the call's name as a
    # prefix.
    content = {"schema": _add_schemas(schema, name, schemas)}
    return {"required": True, "content": {_JSON: content}}


def _add_schemas(schema: dict[str, Any], prefix: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """Add ``schema`` to ``schemas`` with the name ``prefix``, and return a reference to it.

    The definitions of ``schema`` are added, too, and ``prefix`` is put before their names.
    """
    definitions = schema.pop("$defs", {})
    for name, definition in {**definitions, "": schema}.items():
        schemas[prefix + name] = _prefix_references(definition, prefix)
    return {"$ref": f"#/components/schemas/{prefix}"}


def _prefix_references(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {name: _prefix_references(item, prefix) for name, item in value.items()}
    if isinstance(value, list):
        return [_prefix_references(item, prefix) for item in value]
    reference_base = "#/components/schemas/"
    if isinstance(value, str) and value.startswith(reference_base):
        return reference_base + prefix + value.removeprefix(reference_base)
    return value


def _describe_answer(stream_type: str | None) -> dict[str, Any]:
    headers = {
        name: {"description": description, "schema": {"type": "string"}}
        for name, description in _HEADERS.items()
    }
    content: dict[str, Any] = {_JSON: {"schema": _OBJECT_SCHEMA}}
    if stream_type is not None:
        content[stream_type] = {"schema": {"type": "string"}}
    return {"description": "The answer", "headers": headers, "content": content}
