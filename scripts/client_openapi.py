"""Writes the part of the OpenAPI documents that the TypeScript client's types are generated from.

`scripts/typescript_client.sh generate` runs this module, generates the types, and records the
digest of the document in them. A test fails if either file is stale.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

from fastapi import FastAPI
from pydantic import BaseModel, create_model

from deployments.gateway import app as gateway
from deployments.models import app as models
from moyin.jobs.protocol.event_bodies import EVENT_BODIES

_CLIENT = Path(__file__).parents[1] / "clients" / "typescript"
FILE = _CLIENT / "openapi.json"
GENERATED = _CLIENT / "src" / "openapi.ts"
ROUTES: Mapping[str, tuple[str, ...]] = {
    "/jobs": ("get", "post"),
    "/jobs/cancel": ("post",),
    "/jobs/delete": ("post",),
    "/jobs/webhook-secret": ("get",),
    "/jobs/{job_id}": ("get", "delete"),
    "/jobs/{job_id}/graph": ("get",),
    "/jobs/{job_id}/cancel": ("post",),
    "/jobs/{job_id}/retry": ("post",),
    "/jobs/{job_id}/events": ("get",),
    "/jobs/{job_id}/preview": ("get",),
    "/jobs/{job_id}/token": ("post",),
    "/artifacts": ("get", "post"),
    "/artifacts/{artifact_id}": ("get", "delete"),
    "/artifacts/{artifact_id}/link": ("post",),
}
USAGE = "/usage"
_REFERENCE = "#/components/schemas/"
_REFERENCES = re.compile(re.escape(_REFERENCE) + r"(\w+)")


def describe_app(app_module: Any) -> dict[str, Any]:
    """Return the OpenAPI document of an app; all parts of the app are mocks.

    Args:
        app_module: the module whose ``new_app`` creates the app.
    """
    created_apps: list[FastAPI] = []
    new_fastapi = app_module.new_fastapi

    def capture_app(*arguments: Any, **options: Any) -> FastAPI:
        created_apps.append(new_fastapi(*arguments, **options))
        return created_apps[0]

    with patch.object(app_module, "new_fastapi", capture_app):
        app_module.new_app(MagicMock())
    return created_apps[0].openapi()


def build_document() -> dict[str, Any]:
    """Return the routes that the client calls with their schemas, and the schemas of all events."""
    jobs, usage = describe_app(gateway), describe_app(models)
    paths = {
        path: {method: jobs["paths"][path][method] for method in methods}
        for path, methods in ROUTES.items()
    }
    paths[f"/v1{USAGE}"] = {"get": usage["paths"][USAGE]["get"]}
    for operation in (operation for methods in paths.values() for operation in methods.values()):
        # All errors have the same format, for which the client needs no generated types.
        responses = operation["responses"].items()
        operation["responses"] = {
            status: body for status, body in responses if status.startswith("2")
        }
    schemas = _collect_schemas(
        jobs["components"]["schemas"], usage["components"]["schemas"], _describe_events()
    )
    paths = _rename_references(paths)
    names = ["JobEvents", *_list_references(paths)]
    used_schemas: dict[str, Any] = {}
    while names:
        name = names.pop()
        if name not in used_schemas:
            used_schemas[name] = schemas[name]
            names += _list_references(schemas[name])
    return {
        "openapi": jobs["openapi"],
        "info": {"title": "The part of Moyin's API that moyin-client uses", "version": "1"},
        "paths": paths,
        "components": {"schemas": dict(sorted(used_schemas.items()))},
    }


def render_document() -> str:
    """Return the text of the OpenAPI file from which the TypeScript types are generated."""
    return json.dumps(build_document(), indent=2, ensure_ascii=False) + "\n"


def compute_digest() -> str:
    """Return the SHA-256 of the stored OpenAPI file, which the generated types contain."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


def _describe_events() -> dict[str, Any]:
    """Return the schemas of events; `JobEvents` names the schema of each event's data."""
    members: dict[str, Any] = {kind.value: (body, ...) for kind, body in EVENT_BODIES.items()}
    event_model: type[BaseModel] = create_model(
        "JobEvents", __doc__="The data of each type of event.", **members
    )
    schema = event_model.model_json_schema(
        ref_template=_REFERENCE + "{model}", mode="serialization"
    )
    schemas: dict[str, Any] = schema.pop("$defs")
    return {**schemas, "JobEvents": schema}


def _collect_schemas(*documents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas of several documents, by the names of their classes without modules.

    If schemas of different modules have the same name, that of the jobs API is kept.
    """
    renamed_schemas: dict[str, Any] = {}
    for schemas in documents:
        for name, schema in schemas.items():
            # If two models have the same name, keep that of the jobs API.
            if "__" not in name or name.startswith("moyin__jobs__protocol__wire__"):
                renamed_schemas[_shorten_name(name)] = _rename_references(schema)
    return renamed_schemas


def _shorten_name(name: str) -> str:
    return name.rpartition("__")[2]


def _rename_references(value: Any) -> Any:
    """Return a part of a document with short names of schemas and without redundant titles."""
    text = _REFERENCES.sub(lambda match: _REFERENCE + _shorten_name(match[1]), json.dumps(value))
    return json.loads(text, object_hook=_drop_titles)


def _drop_titles(members: dict[str, Any]) -> dict[str, Any]:
    # The value of a property named `title` is a schema, not a text, and must be kept.
    return {
        name: value
        for name, value in members.items()
        if name not in ("title", "operationId") or not isinstance(value, str)
    }


def _list_references(value: Any) -> Iterator[str]:
    yield from _REFERENCES.findall(json.dumps(value))


if __name__ == "__main__":
    FILE.write_text(render_document())
