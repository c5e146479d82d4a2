"""Writes the AsyncAPI 3 document of jobs' events from `moyin.jobs.protocol.event_bodies`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from moyin.domain.job import EventType
from moyin.jobs.protocol.event_bodies import (
    EVENT_BODIES,
    PreviewMessage,
    ProgressMessage,
    StatusMessage,
    StepMessage,
    StreamError,
    WebhookBody,
)
from scripts.api_pages import EVENT_MEANINGS

_SCHEMAS = "#/components/schemas/"
_SOCKET_MESSAGES: tuple[type[BaseModel], ...] = (
    StatusMessage,
    ProgressMessage,
    PreviewMessage,
    StepMessage,
)
_HOST = "127.0.0.1:8000"
_SIGNATURE: Mapping[str, str] = {
    "webhook-id": "The same at every try, so that receivers recognise repetitions.",
    "webhook-timestamp": "The time of this try, in Unix seconds.",
    "webhook-signature": "By Standard Webhooks, with the secret of GET /jobs/webhook-secret.",
}


def build_asyncapi_document() -> str:
    """Return the AsyncAPI document as JSON text."""
    sse_messages = {
        event_type.value: _describe_message(
            EVENT_BODIES[event_type], event_type.value, EVENT_MEANINGS[event_type]
        )
        for event_type in EventType
    }
    sse_messages["error"] = _describe_message(StreamError, "error")
    socket_messages = {model.__name__: _describe_message(model) for model in _SOCKET_MESSAGES}
    headers = {
        name: {"type": "string", "description": summary} for name, summary in _SIGNATURE.items()
    }
    webhook_message = _describe_message(WebhookBody) | {
        "headers": {"type": "object", "required": list(headers), "properties": headers}
    }
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Events of Moyin's jobs",
            "version": version("moyin"),
            "description": "What the gateway sends while jobs run. docs/reference/events.md is the same as text.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "http": _describe_server("http"),
            "websocket": _describe_server("ws"),
        },
        "channels": {
            "serverSentEvents": _describe_job_channel(
                "/jobs/{job_id}/events",
                "http",
                "Server-sent events: the name of a message is the event's name, its payload the data. The "
                "header `Last-Event-ID`, or `?last_event_id=`, resumes after an event.",
                sse_messages,
            ),
            "webSocket": _describe_job_channel(
                "/jobs/{job_id}/ws",
                "websocket",
                "A WebSocket with one JSON message per event. The header `Last-Event-ID`, or "
                "`?last_event_id=`, resumes after an event.",
                socket_messages,
            ),
            "webhook": {
                "address": None,
                "description": "A POST to the job's `webhook`.",
                "messages": {"WebhookBody": webhook_message},
            },
        },
        "operations": {
            name: {
                "action": "send",
                "channel": {"$ref": f"#/channels/{channel}"},
                "summary": summary,
            }
            for name, channel, summary in (
                ("sendServerSentEvents", "serverSentEvents", "Send a job's events to a client."),
                ("sendSocketMessages", "webSocket", "Send a job's events over a WebSocket."),
                ("sendWebhook", "webhook", "Send the end of a job to its webhook."),
            )
        },
        "components": {
            "schemas": _describe_schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "httpApiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _describe_server(protocol: str) -> dict[str, Any]:
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in ("bearer", "apiKey")]
    return {"host": _HOST, "protocol": protocol, "security": security}


def _describe_job_channel(
    address: str, server: str, description: str, messages: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "address": address,
        "servers": [{"$ref": f"#/servers/{server}"}],
        "description": description,
        "parameters": {"job_id": {"description": "The id of the job."}},
        "messages": messages,
    }


def _describe_message(
    model: type[BaseModel], name: str | None = None, summary: str | None = None
) -> dict[str, Any]:
    return {
        "name": name or model.__name__,
        "summary": summary or model.__doc__,
        "payload": {"$ref": _SCHEMAS + model.__name__},
    }


def _describe_schemas() -> dict[str, Any]:
    models: Iterable[type[BaseModel]] = dict.fromkeys(
        (*EVENT_BODIES.values(), StreamError, *_SOCKET_MESSAGES, WebhookBody)
    )
    _, schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template=_SCHEMAS + "{model}"
    )
    return dict(schemas["$defs"])
