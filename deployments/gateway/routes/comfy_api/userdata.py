"""Serves ComfyUI's ``/userdata``: files that a user stores through the frontend."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from deployments.openapi import FILE
from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol.userdata import (
    clean_path,
    file_info,
    listing,
    listing_v2,
    paths_in,
)
from moyin.domain.identity import get_userdata_scope
from moyin.errors import InvalidRequest
from moyin.store.userdata import UserdataStore

__all__ = ["userdata_routes"]

# The content is the user's, so a browser must not run it as a page of the gateway.
_FILE_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "sandbox; default-src 'none'",
}
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"format": "binary"}}}


def _path_parameter(name: str, description: str) -> dict[str, Any]:
    """Describe a path parameter for OpenAPI, as the handlers parse the path themselves."""
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name, "in": "path", "required": True, "description": description, "schema": schema
    }  # fmt: skip


_FILE_PATH: dict[str, Any] = {
    "parameters": [_path_parameter("file", "The file's path, with slashes as `%2F`.")]
}
_MOVE_PATHS: dict[str, Any] = {
    "parameters": [*_FILE_PATH["parameters"], _path_parameter("dest", "The new path, likewise.")]
}
_BODY: dict[str, Any] = {**_FILE_PATH, "requestBody": {"content": _BINARY}}
_TYPES = {"css": "text/css", "json": "application/json", "txt": "text/plain"}
# A flag as ComfyUI parses it: any value but the expected word means the default.
_Flag = Annotated[str, Query(max_length=16)]


def userdata_routes(files: UserdataStore) -> APIRouter:
    """Return the routes of a user's files."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/userdata")
    async def list_files(
        request: Request,
        dir: str = "",
        recurse: _Flag = "",
        full_info: _Flag = "",
        split: _Flag = "",
    ) -> list[Any]:
        """List the caller's files in a folder."""
        if not dir:
            raise InvalidRequest("the parameter dir must name a folder", field="dir")
        return listing(
            await files.list(get_userdata_scope(context(request.scope).caller)),
            clean_path(dir),
            recurse=_is_true(recurse),
            full_info=_is_true(full_info),
            split=_is_true(split),
        )

    @router.get("/v2/userdata")
    async def list_all(request: Request, path: str = "") -> list[dict[str, Any]]:
        """List the caller's files and folders."""
        all_files = await files.list(get_userdata_scope(context(request.scope).caller))
        return listing_v2(all_files, clean_path(path) if path.strip("/") else "")

    @router.get(
        "/userdata/{file:path}",
        response_class=Response,
        responses={200: {"content": FILE}},
        openapi_extra=_FILE_PATH,
    )
    async def read(request: Request) -> Response:
        """Return a file."""
        path, _ = _paths(request)
        content = await files.read(get_userdata_scope(context(request.scope).caller), path)
        media_type = _TYPES.get(path.rpartition(".")[2].lower(), "application/octet-stream")
        return Response(content, media_type=media_type, headers=_FILE_HEADERS)

    @router.post("/userdata/{file:path}/move/{dest:path}", openapi_extra=_MOVE_PATHS)
    @router.post("/userdata/{file:path}", openapi_extra=_BODY)
    async def write(request: Request, overwrite: _Flag = "", full_info: _Flag = "") -> Any:
        """Store the body as a file, or move a file. `overwrite=false`: 409 if the file exists."""
        scope = get_userdata_scope(context(request.scope).caller)
        path, destination = _paths(request)
        replace = overwrite != "false"
        if destination is not None:
            file = await files.move(scope, path, destination, overwrite=replace)
        else:
            file = await files.write(scope, path, await request.body(), overwrite=replace)
        return file_info(file) if _is_true(full_info) else file.path

    @router.delete("/userdata/{file:path}", status_code=204, openapi_extra=_FILE_PATH)
    async def delete(request: Request) -> None:
        """Delete a file."""
        path, _ = _paths(request)
        await files.delete(get_userdata_scope(context(request.scope).caller), path)

    return router


def _paths(request: Request) -> tuple[str, str | None]:
    """Parse the undecoded URL: an encoded slash belongs to the file's path."""
    raw = (request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    return paths_in(raw.partition("?")[0].partition("/userdata/")[2])


def _is_true(flag: str) -> bool:
    return flag.lower() == "true"
