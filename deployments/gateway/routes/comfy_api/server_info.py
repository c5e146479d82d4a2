"""Defines the routes that describe ComfyUI: its nodes, models, devices and extensions."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic_core import to_json

from deployments.openapi import FILE_CONTENT, FILE_RESPONSES
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.caller_pools import CallerPools
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.protocol.node_info import (
    FEATURE_FLAGS,
    merge_lists,
    merge_objects,
    remove_folder_paths,
    set_upload_choices,
)
from moyin.comfy_api.protocol.paging import (
    PageQuery,
    select_names,
    select_nodes,
    summarize_nodes,
)
from moyin.errors import InvalidRequest

_Name = Annotated[str, Query(max_length=512)]
_Pool = Annotated[
    str | None,
    Query(max_length=128, description="Only this render pool; by default all that you may use."),
]
_COUNT_HEADER = "x-total-count"
_PAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            _COUNT_HEADER: {
                "description": "How many match, on all pages; only with `search`, `after` or `limit`.",
                "schema": {"type": "integer"},
            }
        }
    }
}


def _read_page_query(
    search: Annotated[
        str | None, Query(max_length=200, description="Only those that contain all of these words.")
    ] = None,
    after: Annotated[
        str | None,
        Query(max_length=512, description="Only those after this name, the last of a page."),
    ] = None,
    limit: Annotated[
        int | None,
        Query(
            ge=1, le=1_000, description="Return so many at most, sorted by name; by default all."
        ),
    ] = None,
) -> PageQuery:
    return PageQuery(search=search, after=after, limit=limit)


_Page = Annotated[PageQuery, Depends(_read_page_query)]


def new_server_info_routes(
    admission: GraphAdmission, files: ComfyFiles, max_body_bytes: int
) -> APIRouter:
    """Return the routes of node classes, devices, feature flags, logs and uploads."""
    router = APIRouter(tags=["comfyui"])

    router.include_router(_new_node_routes(admission, files))

    @router.get("/system_stats", name="system_stats")
    async def get_system_stats(request: Request) -> dict[str, Any]:
        """Return the GPUs of the running ComfyUI processes of your render pools."""
        pools = await _find_pools(admission, request)
        stats = await pools.fetch_from_renderers("/system_stats")
        system = dict(stats[0]["system"]) if stats else {"os": os.name, "embedded_python": False}
        # The worker's command line is removed, because it is internal.
        system["argv"] = ["moyin"]
        system.setdefault("python_version", platform.python_version())
        return {"system": system, "devices": _number_devices(stats)}

    @router.get("/features", name="features")
    async def get_feature_flags() -> dict[str, Any]:
        """Return the feature flags that the frontend reads."""
        return {**FEATURE_FLAGS, "max_upload_size": max_body_bytes}

    @router.get("/users", name="users")
    async def get_user_storage() -> dict[str, Any]:
        """Tell the frontend not to ask for a user, because the key identifies the user."""
        return {"storage": "server", "migrated": True}

    @router.post("/users", name="add_user")
    async def reject_new_user() -> dict[str, Any]:
        """Reject the request, because users register at `/accounts`."""
        raise InvalidRequest("ComfyUI's own users are not supported: create accounts at /accounts")

    @router.get("/internal/logs", name="logs")
    async def get_log() -> str:
        """Return an empty log, because the real log contains data of all tenants."""
        return ""

    @router.get("/internal/logs/raw", name="raw_logs")
    async def get_raw_log() -> dict[str, Any]:
        """Return an empty log, because the real log contains data of all tenants."""
        return {"entries": [], "size": {"cols": 80, "rows": 24}}

    @router.patch("/internal/logs/subscribe", response_class=Response, name="subscribe")
    async def subscribe_to_logs() -> Response:
        """Accept the subscription to the log, but never send entries."""
        return Response()

    @router.get("/internal/files/{kind}", name="uploads")
    async def list_uploads(request: Request, kind: str) -> list[str]:
        """List your uploads of the type `kind`, such as `input`."""
        return await files.list_uploads(context(request.scope).owner, kind)

    @router.get("/internal/folder_paths", name="folder_paths")
    async def list_folder_paths(request: Request) -> dict[str, list[str]]:
        """Return the model folders by name. Instead of its real path, each has its name again."""
        pools = await _find_pools(admission, request)
        folders: list[str] = await pools.fetch_merged("/models", merge_lists, [])
        return {folder: [folder] for folder in folders}

    return router


def _new_node_routes(admission: GraphAdmission, files: ComfyFiles) -> APIRouter:
    """Return the routes that describe node classes."""
    router = APIRouter()

    @router.get("/object_info", name="object_info", responses=_PAGE_RESPONSES)
    async def list_nodes(
        request: Request,
        page: _Page,
        pool: _Pool = None,
        summary: Annotated[
            bool, Query(description="Return only the names, categories and descriptions.")
        ] = False,
    ) -> Response:
        """Return the node classes that your graphs may use, with your uploads as file choices.

        `search` finds words in names, titles, categories and descriptions.
        """
        request_context = context(request.scope)
        nodes = await admission.list_nodes(request_context.caller, pool)
        headers = {}
        if page.is_partial:
            nodes, match_count = await asyncio.to_thread(select_nodes, nodes, page)
            headers[_COUNT_HEADER] = str(match_count)
        if summary:
            nodes = summarize_nodes(nodes)
        else:
            nodes = set_upload_choices(nodes, await files.list_uploads(request_context.owner))
        return Response(to_json(nodes), media_type="application/json", headers=headers)

    @router.get("/object_info/{node}", name="one_object_info")
    async def get_node(request: Request, node: str) -> dict[str, Any]:
        """Return a node class, or an empty object if no class has this name."""
        request_context = context(request.scope)
        nodes = await admission.list_nodes(request_context.caller)
        if node not in nodes:
            return {}
        uploads = await files.list_uploads(request_context.owner)
        return set_upload_choices({node: nodes[node]}, uploads)

    return router


def new_package_routes(admission: GraphAdmission) -> APIRouter:
    """Return the routes of the files, graphs and translations that node packages provide.

    Each caller gets those of its render pools.
    """
    router = APIRouter(tags=["comfyui"])

    @router.get("/extensions", name="extensions")
    async def list_extensions(request: Request) -> list[str]:
        """List the scripts that the frontend and the node packages add to the page."""
        pools = await _find_pools(admission, request)
        return await pools.fetch_merged("/extensions", merge_lists, [])

    @router.get(
        "/extensions/{path:path}",
        response_class=Response,
        responses={200: {"content": FILE_CONTENT}, 304: FILE_RESPONSES[304]},
        name="file",
    )
    async def get_extension_file(request: Request, path: str) -> Response:
        """Return a file that a node package provides for the frontend."""
        pools = await _find_pools(admission, request)
        content = await pools.fetch_first(f"/extensions/{quote(path)}")
        etag = await asyncio.to_thread(_compute_etag, content)
        headers = {
            "etag": etag,
            "cache-control": "private, no-cache",
            "cross-origin-resource-policy": "same-origin",
        }
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return Response(content, media_type=media_type, headers=headers)

    @router.get("/workflow_templates", name="workflow_templates")
    async def list_workflow_templates(request: Request) -> dict[str, Any]:
        """Return the example graphs of node packages by package."""
        pools = await _find_pools(admission, request)
        return await pools.fetch_merged("/workflow_templates", merge_objects, {})

    @router.get("/global_subgraphs", name="global_subgraphs")
    async def list_subgraphs(request: Request) -> dict[str, Any]:
        """Return the subgraphs that node packages provide."""
        pools = await _find_pools(admission, request)
        return await pools.fetch_merged("/global_subgraphs", merge_objects, {})

    @router.get("/global_subgraphs/{id}", name="global_subgraph")
    async def get_subgraph(request: Request, id: str) -> Any:
        """Return a subgraph, or null if no subgraph has this id."""
        pools = await _find_pools(admission, request)
        path = f"/global_subgraphs/{quote(id, safe='')}"
        subgraphs = await pools.fetch_merged(path, list, [None])
        return next((subgraph for subgraph in subgraphs if subgraph is not None), None)

    @router.get("/i18n", name="translations")
    async def get_translations(request: Request) -> dict[str, Any]:
        """Return the translations that node packages provide."""
        pools = await _find_pools(admission, request)
        return await pools.fetch_merged("/i18n", merge_objects, {})

    @router.get("/node_replacements", name="node_replacements")
    async def list_node_replacements() -> dict[str, Any]:
        """Return an empty object, because Moyin replaces no nodes. Newer frontends request this."""
        return {}

    return router


def new_model_routes(admission: GraphAdmission) -> APIRouter:
    """Return the routes that list the model files on the machines of the caller's pools."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/models", name="model_folders")
    async def list_model_folders(request: Request, pool: _Pool = None) -> list[str]:
        """List the model folders."""
        pools = (await _find_pools(admission, request)).select(pool)
        return await pools.fetch_merged("/models", merge_lists, [])

    @router.get("/models/{folder}", name="model_files", responses=_PAGE_RESPONSES)
    async def list_model_files(
        request: Request, response: Response, folder: str, page: _Page, pool: _Pool = None
    ) -> Sequence[str]:
        """List the model files that any of your render pools has in a folder."""
        pools = (await _find_pools(admission, request)).select(pool)
        path = f"/models/{quote(folder, safe='')}"
        names: Sequence[str] = await pools.fetch_merged(path, merge_lists)
        if page.is_partial:
            names, match_count = await asyncio.to_thread(select_names, names, page)
            response.headers[_COUNT_HEADER] = str(match_count)
        return names

    @router.get("/embeddings", name="embeddings")
    async def list_embeddings(request: Request) -> list[str]:
        """List the textual inversions (embeddings) that any of your render pools has."""
        pools = await _find_pools(admission, request)
        return await pools.fetch_merged("/embeddings", merge_lists, [])

    @router.get("/experiment/models", name="model_folders_v2")
    async def list_model_folders_v2(request: Request) -> list[dict[str, Any]]:
        """List the model folders in the format of newer frontends."""
        pools = await _find_pools(admission, request)
        return remove_folder_paths(await pools.fetch_merged("/experiment/models", merge_lists, []))

    @router.get("/experiment/models/{folder}", name="model_files_v2")
    async def list_model_files_v2(request: Request, folder: str) -> list[dict[str, Any]]:
        """List the model files in a folder, with their sizes and the times of last change."""
        pools = await _find_pools(admission, request)
        path = f"/experiment/models/{quote(folder, safe='')}"
        return await pools.fetch_merged(path, merge_lists)

    @router.get(
        "/experiment/models/preview/{folder}/{index}/{file:path}",
        response_class=Response,
        responses={200: {"content": {"image/webp": FILE_CONTENT["*/*"]}}},
        name="preview",
    )
    async def get_preview(request: Request, folder: str, index: int, file: str) -> Response:
        """Return a model's preview picture."""
        pools = await _find_pools(admission, request)
        path_segments = (quote(folder, safe=""), str(index), quote(file, safe="/"))
        picture = await pools.fetch_first(f"/experiment/models/preview/{'/'.join(path_segments)}")
        return Response(picture, media_type="image/webp")

    @router.get("/view_metadata/{folder}", name="metadata")
    async def get_model_metadata(request: Request, folder: str, filename: _Name) -> dict[str, Any]:
        """Return the metadata in the header of a safetensors file."""
        pools = await _find_pools(admission, request)
        path = f"/view_metadata/{quote(folder, safe='')}?{urlencode({'filename': filename})}"
        return await pools.fetch_merged(path, merge_objects)

    return router


async def _find_pools(admission: GraphAdmission, request: Request) -> CallerPools:
    """Return the render pools of the caller who sent the request."""
    return await admission.find_pools(context(request.scope).caller)


def _compute_etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _number_devices(stats: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    devices = [device for renderer in stats for device in renderer.get("devices", [])]
    return [{**device, "index": number} for number, device in enumerate(devices)]
