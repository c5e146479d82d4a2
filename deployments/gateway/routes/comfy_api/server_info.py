"""Serves what ComfyUI reports about itself: nodes, models, devices and extensions."""

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

from deployments.openapi import FILE_CONTENT, FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import GraphAdmission
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

__all__ = ["model_routes", "package_routes", "server_info_routes"]

T = TypeVar("T")
_Name = Annotated[str, Query(max_length=512)]


def server_info_routes(
    node_info: NodeInfoCache, admission: GraphAdmission, files: FarmFiles, max_body_bytes: int
) -> APIRouter:
    """Return the routes of the server's nodes, devices, features and users."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/object_info")
    async def object_info(request: Request) -> Response:
        """Return the nodes of all pools that your graphs may use, with your uploads as choices."""
        caller = context(request.scope)
        uploads = await files.list_uploads(caller.owner)
        nodes = with_uploads(await admission.nodes(caller.caller), uploads)
        return Response(to_json(nodes), media_type="application/json")

    @router.get("/object_info/{node}")
    async def one_object_info(request: Request, node: str) -> dict[str, Any]:
        """Return one node; an empty object if there is none of this name."""
        caller = context(request.scope)
        nodes = await admission.nodes(caller.caller)
        if node not in nodes:
            return {}
        uploads = await files.list_uploads(caller.owner)
        return with_uploads({node: nodes[node]}, uploads)

    @router.get("/system_stats")
    async def system_stats() -> dict[str, Any]:
        """Return the devices of the farm: one for every ComfyUI that is up."""
        stats = await node_info.all_renderers("/system_stats")
        system = dict(stats[0]["system"]) if stats else {"os": os.name, "embedded_python": False}
        # Hide the worker's own command line from clients.
        system["argv"] = ["moyin"]
        system.setdefault("python_version", platform.python_version())
        return {"system": system, "devices": _devices(stats)}

    @router.get("/features")
    async def features() -> dict[str, Any]:
        """Return the server's feature flags."""
        return {**FEATURES, "max_upload_size": max_body_bytes}

    @router.get("/users")
    async def users() -> dict[str, Any]:
        """Tell the frontend not to ask for a user, as the key identifies the user."""
        return {"storage": "server", "migrated": True}

    @router.post("/users")
    async def add_user() -> dict[str, Any]:
        """Reject the request: users sign up at `/accounts`."""
        raise InvalidRequest("ComfyUI's users are not supported: create accounts at /accounts")

    @router.get("/internal/logs")
    async def logs() -> str:
        """Return an empty log, because a worker's log shows the work of all tenants."""
        return ""

    @router.get("/internal/logs/raw")
    async def raw_logs() -> dict[str, Any]:
        """Return an empty log, because a worker's log shows the work of all tenants."""
        return {"entries": [], "size": {"cols": 80, "rows": 24}}

    @router.patch("/internal/logs/subscribe", response_class=Response)
    async def subscribe() -> Response:
        """Accept the subscription, but never send log entries."""
        return Response()

    @router.get("/internal/files/{kind}")
    async def uploads(request: Request, kind: str) -> list[str]:
        """List your uploads of one type."""
        return await files.list_uploads(context(request.scope).owner, kind)

    @router.get("/internal/folder_paths")
    async def folder_paths() -> dict[str, list[str]]:
        """Return the names of the model folders, without their paths on the machines."""
        folders: list[str] = await _merged_or(node_info, "/models", union_of_lists, [])
        return {folder: [folder] for folder in folders}

    return router


def package_routes(node_info: NodeInfoCache) -> APIRouter:
    """Return the routes of what node packages provide."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/extensions")
    async def extensions() -> list[str]:
        """List the scripts that the frontend loads: its own and those of node packages."""
        return await _merged_or(node_info, "/extensions", union_of_lists, [])

    @router.get(
        "/extensions/{path:path}",
        response_class=Response,
        responses={200: {"content": FILE_CONTENT}, 304: FILE_RESPONSES[304]},
    )
    async def file(request: Request, path: str) -> Response:
        """Return a node package's file for the frontend."""
        content = await node_info.first(f"/extensions/{quote(path)}")
        tag = await asyncio.to_thread(_etag, content)
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
        """Return the graphs that node packages provide, by package."""
        return await _merged_or(node_info, "/workflow_templates", union_of_objects, {})

    @router.get("/global_subgraphs")
    async def global_subgraphs() -> dict[str, Any]:
        """Return the subgraphs that node packages provide."""
        return await _merged_or(node_info, "/global_subgraphs", union_of_objects, {})

    @router.get("/global_subgraphs/{id}")
    async def global_subgraph(id: str) -> Any:
        """Return one subgraph; null if there is none with this id."""
        path = f"/global_subgraphs/{quote(id, safe='')}"
        subgraphs = await _merged_or(node_info, path, list, [None])
        return subgraphs[0]

    @router.get("/i18n")
    async def translations() -> dict[str, Any]:
        """Return the translations that node packages provide."""
        return await _merged_or(node_info, "/i18n", union_of_objects, {})

    @router.get("/node_replacements")
    async def node_replacements() -> dict[str, Any]:
        """Return no replacements; newer frontends request this route."""
        return {}

    return router


def model_routes(node_info: NodeInfoCache) -> APIRouter:
    """Return the routes of the model files on the pools' machines."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/models")
    async def model_folders() -> list[str]:
        """List the model folders."""
        return await _merged_or(node_info, "/models", union_of_lists, [])

    @router.get("/models/{folder}")
    async def model_files(folder: str) -> list[str]:
        """List the model files of a folder, of all pools."""
        return await node_info.merged(f"/models/{quote(folder, safe='')}", union_of_lists)

    @router.get("/embeddings")
    async def embeddings() -> list[str]:
        """List the textual inversions of all pools."""
        return await _merged_or(node_info, "/embeddings", union_of_lists, [])

    @router.get("/experiment/models")
    async def model_folders_v2() -> list[dict[str, Any]]:
        """List the model folders in the format of newer frontends."""
        return without_paths(await _merged_or(node_info, "/experiment/models", union_of_lists, []))

    @router.get("/experiment/models/{folder}")
    async def model_files_v2(folder: str) -> list[dict[str, Any]]:
        """List the model files of a folder, with sizes and times."""
        path = f"/experiment/models/{quote(folder, safe='')}"
        return await node_info.merged(path, union_of_lists)

    @router.get(
        "/experiment/models/preview/{folder}/{index}/{file:path}",
        response_class=Response,
        responses={200: {"content": {"image/webp": FILE_CONTENT["*/*"]}}},
    )
    async def preview(folder: str, index: int, file: str) -> Response:
        """Return a model's preview picture."""
        parts = (quote(folder, safe=""), str(index), quote(file, safe="/"))
        picture = await node_info.first(f"/experiment/models/preview/{'/'.join(parts)}")
        return Response(picture, media_type="image/webp")

    @router.get("/view_metadata/{folder}")
    async def metadata(folder: str, filename: _Name) -> dict[str, Any]:
        """Return the metadata of a safetensors file."""
        path = f"/view_metadata/{quote(folder, safe='')}?{urlencode({'filename': filename})}"
        return await node_info.merged(path, union_of_objects)

    return router


async def _merged_or(
    node_info: NodeInfoCache, path: str, merge: Callable[[list[Any]], T], default: T
) -> T:
    """Return the pools' merged responses, or ``default``, with which the frontend can start."""
    try:
        return await node_info.merged(path, merge)
    except (ServiceUnavailable, NotFound):
        return default


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _devices(stats: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    devices = [device for renderer in stats for device in renderer.get("devices", [])]
    return [{**device, "index": number} for number, device in enumerate(devices)]
