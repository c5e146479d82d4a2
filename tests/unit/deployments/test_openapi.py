"""Tests the OpenAPI documents of three apps; `tests/integration` calls the routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from deployments.accounts import app as accounts
from deployments.gateway import app as gateway
from deployments.models import app as models
from moyin.domain.job import EventType
from moyin.jobs.protocol.event_bodies import EVENT_BODIES
from scripts.client_openapi import describe_app

APPS: dict[str, Any] = {"gateway": gateway, "models": models, "accounts": accounts}
PUBLIC = {
    "gateway": {
        "/healthz", "/readyz", "/artifacts/signed/{token}/{name}",
        "/artifacts/signed/archive/{token}/{name}", "/comfy/session",
        "/comfy/session/end",
    },
    "models": {"/healthz", "/readyz"},
    "accounts": {
        "/healthz", "/readyz", "/.well-known/jwks.json", "/register", "/login", "/refresh",
        "/password/forgot", "/password/reset", "/oidc", "/oidc/begin", "/oidc/finish", "/sign-in",
        "/session", "/session/renew", "/session/end",
    },
}  # fmt: skip


@pytest.fixture(params=APPS)
def app_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def openapi_document(app_name: str) -> Any:
    """Return the OpenAPI document of the app ``app_name``, built from mocks."""
    return describe_app(APPS[app_name])


def _list_operations(openapi_document: Any) -> Iterator[tuple[str, Any]]:
    for path, methods in openapi_document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_document_is_valid(openapi_document: Any) -> None:
    assert [
        error.message for error in OpenAPIV31SpecValidator(openapi_document).iter_errors()
    ] == []


def test_document_lists_routes_that_need_no_key(app_name: str, openapi_document: Any) -> None:
    assert openapi_document["security"] == [{"bearer": []}, {"apiKey": []}]
    schemes = openapi_document["components"]["securitySchemes"]
    public_paths = set()
    for path, operation in _list_operations(openapi_document):
        if operation.get("security") == []:
            public_paths.add(path)
        for requirement in operation.get("security", ()):
            assert requirement.keys() <= schemes.keys(), path
    assert public_paths == PUBLIC[app_name]


def test_body_of_every_response_is_described(openapi_document: Any) -> None:
    """Each response has a schema, unless its status allows no body."""
    for path, operation in _list_operations(openapi_document):
        for status, response in operation["responses"].items():
            assert response.get("description"), (path, status)
            if status in ("202", "204", "303", "304", "416"):
                continue
            if not response.get("content"):
                assert path in EMPTY, (path, status)


# ComfyUI answers these with an empty body.
EMPTY = {
    "/queue", "/history", "/interrupt", "/free", "/internal/logs/subscribe", "/settings",
    "/settings/{id}",
}  # fmt: skip


@pytest.mark.parametrize("app_name", ["gateway"])
def test_events_of_jobs_have_types(openapi_document: Any) -> None:
    [content] = openapi_document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"][
        "content"
    ].items()
    assert content == (
        "text/event-stream",
        {"schema": {"$ref": "#/components/schemas/ServerSentEvent"}},
    )
    schemas = openapi_document["components"]["schemas"]
    event_schemas = {
        event["properties"]["event"]["const"]: event["properties"]["data"]["contentSchema"]["$ref"]
        for event in schemas["ServerSentEvent"]["oneOf"]
    }
    assert event_schemas.pop("error") == "#/components/schemas/StreamError"
    assert event_schemas == {
        kind.value: f"#/components/schemas/{body.__name__}" for kind, body in EVENT_BODIES.items()
    }
    references = schemas["JobEvent"]["discriminator"]["mapping"]
    assert references.keys() == {kind.value for kind in EventType}
    for kind, reference in references.items():
        message = schemas[reference.removeprefix("#/components/schemas/")]
        body = EVENT_BODIES[EventType(kind)].__name__
        assert message["properties"]["data"] == {"$ref": f"#/components/schemas/{body}"}
        assert (
            schemas[body]["properties"].keys() == EVENT_BODIES[EventType(kind)].model_fields.keys()
        )
