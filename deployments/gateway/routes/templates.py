"""Serves ``/templates``: named graphs with typed inputs, for ``POST /jobs``."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel

from moyin.render.templates import wire
from moyin.render.templates.catalog import TemplateCatalog
from moyin.render.templates.response import to_response_body

__all__ = ["template_routes"]

_UNCHANGED: dict[int | str, dict[str, str]] = {304: {"description": "`If-None-Match` matches."}}


def template_routes(templates: TemplateCatalog) -> APIRouter:
    """Return the routes of templates."""
    router = APIRouter(tags=["templates"])

    @router.get("/templates", response_model=wire.TemplateList, responses=_UNCHANGED)
    async def page(known: Annotated[str | None, Header(alias="If-None-Match")] = None) -> Response:
        """List all templates, each with the JSON Schema of its inputs."""
        shelf = await templates.snapshot()
        digests = "".join(template.digest for template in shelf.templates)
        body = wire.TemplateList(templates=[to_response_body(t) for t in shelf.templates])
        return _response(body, hashlib.sha256(digests.encode()).hexdigest(), known)

    @router.get("/templates/{name}", response_model=wire.TemplateBody, responses=_UNCHANGED)
    async def show(
        name: str, known: Annotated[str | None, Header(alias="If-None-Match")] = None
    ) -> Response:
        """Return a template by its name or an alias."""
        template = await templates.get(name)
        return _response(to_response_body(template), template.digest, known)

    return router


def _response(body: BaseModel, digest: str, known: str | None) -> Response:
    tag = f'"{digest[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if known is not None and (tag in known or known.strip() == "*"):
        return Response(status_code=304, headers=headers)
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)
