"""What ComfyUI's clients ask a server about itself: nodes, models, devices, and what else it has.

Every route is also under ``/api``.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import platform
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from deployments.openapi import FILE, FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import Admission
from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.node_info import (
    FEATURES,
    union_of_lists,
    union_of_objects,
    with_uploads,
    without_paths,
)
from moyin.errors import InvalidRequest, NotFound, ServiceUnavailable

__all__ = ["fact_routes", "model_routes", "package_routes"]

T = TypeVar("T")
_Name = Annotated[str, Query(max_length=512)]


def fact_routes(
    facts: NodeInfoCache, admission: Admission, files: FarmFiles, max_body_bytes: int
) -> APIRouter:
    """The routes of the server itself."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/object_info")
    async def object_info(request: Request) -> Response:
        """The nodes that the caller's graphs may have, of all pools. Where one takes an upload, the
        caller's own are offered."""
        asked = context(request.scope)
        uploads = await files.uploaded(asked.owner)
        nodes = with_uploads(await admission.nodes(asked.caller), uploads)
        return Response(to_json(nodes), media_type="application/json")

    @router.get("/object_info/{node}")
    async def node_info(request: Request, node: str) -> dict[str, Any]:
        """One of them; an empty object when there is none."""
        asked = context(request.scope)
        nodes = await admission.nodes(asked.caller)
        if node not in nodes:
            return {}
        uploads = await files.uploaded(asked.owner)
        return with_uploads({node: nodes[node]}, uploads)

    @router.get("/system_stats")
    async def system_stats() -> dict[str, Any]:
        """The farm's devices: one for every ComfyUI that is up."""
        said = await facts.each("/system_stats")
        system = dict(said[0]["system"]) if said else {"os": os.name, "embedded_python": False}
        # How a worker was started is no client's business.
        system["argv"] = ["moyin"]
        system.setdefault("python_version", platform.python_version())
        return {"system": system, "devices": _devices(said)}

    @router.get("/features")
    async def features() -> dict[str, Any]:
        """What the server understands beyond the plainest client."""
        return {**FEATURES, "max_upload_size": max_body_bytes}

    @router.get("/users")
    async def users() -> dict[str, Any]:
        """Who it is says the key; there is nobody to choose from."""
        return {"storage": "server", "migrated": True}

    @router.post("/users")
    async def add_user() -> dict[str, Any]:
        """Refused: people sign up at `/accounts`."""
        raise InvalidRequest("people are made at /accounts; a key says who you are")

    @router.get("/internal/logs")
    async def logs() -> str:
        """Empty: a worker's log tells of everybody's work."""
        return ""

    @router.get("/internal/logs/raw")
    async def raw_logs() -> dict[str, Any]:
        """Likewise."""
        return {"entries": [], "size": {"cols": 80, "rows": 24}}

    @router.patch("/internal/logs/subscribe", response_class=Response)
    async def subscribe() -> Response:
        """Accepted; nothing is ever sent."""
        return Response()

    @router.get("/internal/files/{kind}")
    async def listed(request: Request, kind: str) -> list[str]:
        """The caller's uploads of one type."""
        return await files.uploaded(context(request.scope).owner, kind)

    @router.get("/internal/folder_paths")
    async def folder_paths() -> dict[str, list[str]]:
        """Names of the model folders; where they lie is no client's business."""
        folders: list[str] = await _known(facts, "/models", union_of_lists, [])
        return {folder: [folder] for folder in folders}

    return router


def package_routes(facts: NodeInfoCache) -> APIRouter:
    """The routes of what node packages bring."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/extensions")
    async def extensions() -> list[str]:
        """Scripts that the frontend loads: its own, and those of the pools' node packages."""
        return await _known(facts, "/extensions", union_of_lists, [])

    @router.get(
        "/extensions/{path:path}",
        response_class=Response,
        responses={200: {"content": FILE}, 304: FILE_RESPONSES[304]},
    )
    async def file(request: Request, path: str) -> Response:
        """A file that a node package brings for the frontend."""
        content = await facts.first(f"/extensions/{quote(path)}")
        tag = await asyncio.to_thread(_tag, content)
        headers = {
            "etag": tag,
            "cache-control": "private, no-cache",
            "cross-origin-resource-policy": "same-origin",
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return Response(content, media_type=kind, headers=headers)

    @router.get("/workflow_templates")
    async def workflow_templates() -> dict[str, Any]:
        """Graphs that node packages bring, by package."""
        return await _known(facts, "/workflow_templates", union_of_objects, {})

    @router.get("/global_subgraphs")
    async def global_subgraphs() -> dict[str, Any]:
        """Subgraphs that node packages bring."""
        return await _known(facts, "/global_subgraphs", union_of_objects, {})

    @router.get("/global_subgraphs/{id}")
    async def global_subgraph(id: str) -> Any:
        """One of them; null when there is none."""
        found = await _known(facts, f"/global_subgraphs/{quote(id, safe='')}", list, [None])
        return found[0]

    @router.get("/i18n")
    async def translations() -> dict[str, Any]:
        """Translations that node packages bring."""
        return await _known(facts, "/i18n", union_of_objects, {})

    @router.get("/node_replacements")
    async def node_replacements() -> dict[str, Any]:
        """None: asked for by newer frontends."""
        return {}

    return router


def model_routes(facts: NodeInfoCache) -> APIRouter:
    """The routes of models, which the pools have on their disks."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/models")
    async def folders() -> list[str]:
        """Kinds of models."""
        return await _known(facts, "/models", union_of_lists, [])

    @router.get("/models/{folder}")
    async def models(folder: str) -> list[str]:
        """Files of one kind that some pool has."""
        return await facts.union(f"/models/{quote(folder, safe='')}", union_of_lists)

    @router.get("/embeddings")
    async def embeddings() -> list[str]:
        """Textual inversions that some pool has."""
        return await _known(facts, "/embeddings", union_of_lists, [])

    @router.get("/experiment/models")
    async def folders_again() -> list[dict[str, Any]]:
        """Kinds of models, as newer frontends ask."""
        return without_paths(await _known(facts, "/experiment/models", union_of_lists, []))

    @router.get("/experiment/models/{folder}")
    async def models_again(folder: str) -> list[dict[str, Any]]:
        """Files of one kind, with sizes and times."""
        return await facts.union(f"/experiment/models/{quote(folder, safe='')}", union_of_lists)

    @router.get(
        "/experiment/models/preview/{folder}/{index}/{file:path}",
        response_class=Response,
        responses={200: {"content": {"image/webp": FILE["*/*"]}}},
    )
    async def preview(folder: str, index: int, file: str) -> Response:
        """The picture beside a model, where there is one."""
        parts = (quote(folder, safe=""), str(index), quote(file, safe="/"))
        said = await facts.first(f"/experiment/models/preview/{'/'.join(parts)}")
        return Response(said, media_type="image/webp")

    @router.get("/view_metadata/{folder}")
    async def metadata(folder: str, filename: _Name) -> dict[str, Any]:
        """What a safetensors file says of itself."""
        path = f"/view_metadata/{quote(folder, safe='')}?{urlencode({'filename': filename})}"
        return await facts.union(path, union_of_objects)

    return router


async def _known(
    facts: NodeInfoCache, path: str, merge: Callable[[list[Any]], T], otherwise: T
) -> T:
    """What the pools say, or ``otherwise`` while none does: the frontend starts without it."""
    try:
        return await facts.union(path, merge)
    except (ServiceUnavailable, NotFound):
        return otherwise


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _devices(said: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    devices = [device for one in said for device in one.get("devices", [])]
    return [{**device, "index": number} for number, device in enumerate(devices)]
