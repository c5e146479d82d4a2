"""Tests that the AsyncAPI document describes every event on every channel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from moyin.domain.job import EventType
from moyin.jobs.protocol.event_bodies import EVENT_BODIES
from scripts.asyncapi import build_asyncapi_document


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(build_asyncapi_document())


def resolve_reference(document: Any, reference: str) -> Any:
    value = document
    for key in reference.removeprefix("#/").split("/"):
        value = value[key]
    return value


def find_references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from find_references(child)


def test_every_reference_can_be_resolved(document: Any) -> None:
    references = set(find_references(document))
    assert len(references) > 10
    for reference in references:
        assert resolve_reference(document, reference), reference


def test_server_sent_events_have_the_data_of_their_types(document: Any) -> None:
    messages = dict(document["channels"]["serverSentEvents"]["messages"])
    assert messages.pop("error")["payload"] == {"$ref": "#/components/schemas/StreamError"}
    payloads = {name: message["payload"]["$ref"] for name, message in messages.items()}
    assert payloads == {
        kind.value: f"#/components/schemas/{EVENT_BODIES[kind].__name__}" for kind in EventType
    }
    for kind, reference in payloads.items():
        members = EVENT_BODIES[EventType(kind)].model_fields
        assert resolve_reference(document, reference)["properties"].keys() == members.keys()


def test_messages_of_the_websocket_have_all_types(document: Any) -> None:
    types: set[str] = set()
    for message in document["channels"]["webSocket"]["messages"].values():
        type_schema = resolve_reference(document, message["payload"]["$ref"])["properties"]["type"]
        types |= set(type_schema.get("enum") or [type_schema["const"]])
    assert types == {type_schema.value for type_schema in EventType}


def test_a_webhook_is_sent_for_every_end(document: Any) -> None:
    [webhook_message] = document["channels"]["webhook"]["messages"].values()
    type_schema = resolve_reference(document, webhook_message["payload"]["$ref"])["properties"][
        "type"
    ]
    assert set(type_schema["enum"]) == {
        f"job.{type_schema.value}" for type_schema in EventType if type_schema.is_final
    }
    assert len(webhook_message["headers"]["required"]) == 3


def test_every_channel_is_sent_by_an_operation(document: Any) -> None:
    channels = {
        resolve_reference(document, o["channel"]["$ref"])["address"]
        for o in document["operations"].values()
    }
    assert channels == {"/jobs/{job_id}/events", "/jobs/{job_id}/ws", None}
