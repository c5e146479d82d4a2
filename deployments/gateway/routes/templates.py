"""Defines the routes below ``/templates``, which show the templates that jobs can use."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel

from moyin.render.templates import wire
from moyin.render.templates.catalog import Catalog
from moyin.render.templates.response import template_body

__all__ = ["template_routes"]

_UNCHANGED: dict[int | str, dict[str, str]] = {304: {"description": "`If-None-Match` matches."}}


def template_routes(templates: Catalog) -> APIRouter:
    """Return the routes that list and show templates."""
    router = APIRouter(tags=["templates"])

    @router.get(
        "/templates",
        response_model=wire.TemplateList,
        responses=_UNCHANGED,
        operation_id="page_templates_get",
    )
    async def list_templates(
        known: Annotated[str | None, Header(alias="If-None-Match")] = None,
    ) -> Response:
        """List all templates, each with the JSON Schema of its inputs."""
        snapshot = await templates.snapshot()
        digests = "".join(template.digest for template in snapshot.templates)
        body = wire.TemplateList(templates=[template_body(t) for t in snapshot.templates])
        return _cacheable_response(body, hashlib.sha256(digests.encode()).hexdigest(), known)

    @router.get(
        "/templates/{name}",
        response_model=wire.TemplateBody,
        responses=_UNCHANGED,
        operation_id="show_templates__name__get",
    )
    async def get_template(
        name: str, known: Annotated[str | None, Header(alias="If-None-Match")] = None
    ) -> Response:
        """Return a template by its name or an alias."""
        template = await templates.get(name)
        return _cacheable_response(template_body(template), template.digest, known)

    return router


def _cacheable_response(body: BaseModel, digest: str, known: str | None) -> Response:
    """Return the body, or status 304 if the client's ``If-None-Match`` names the digest."""
    tag = f'"{digest[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if known is not None and (tag in known or known.strip() == "*"):
        return Response(status_code=304, headers=headers)
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)
