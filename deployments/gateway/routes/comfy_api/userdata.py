"""Defines the routes of ComfyUI's ``/userdata``: files that a user stores with the frontend."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from deployments.openapi import FILE_CONTENT
from moyin.access.gatekeeper import context
from moyin.comfy_api.protocol.userdata import (
    build_file_entry,
    list_folder,
    list_folder_v2,
    normalize_path,
    parse_paths,
)
from moyin.domain.identity import get_userdata_scope
from moyin.errors import InvalidRequest
from moyin.store.userdata import UserdataStore

# The user chooses the content, so a browser must not run it as a page of the gateway.
_FILE_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "sandbox; default-src 'none'",
}
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"format": "binary"}}}


def _describe_path_parameter(name: str, description: str) -> dict[str, Any]:
    """Return the OpenAPI description of a path parameter that handlers parse themselves."""
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name, "in": "path", "required": True, "description": description, "schema": schema
    }  # fmt: skip


_FILE_PATH: dict[str, Any] = {
    "parameters": [_describe_path_parameter("file", "The file's path, with slashes as `%2F`.")]
}
_MOVE_PATHS: dict[str, Any] = {
    "parameters": [
        *_FILE_PATH["parameters"],
        _describe_path_parameter("dest", "The new path, with slashes as `%2F`."),
    ]
}
_BODY: dict[str, Any] = {**_FILE_PATH, "requestBody": {"content": _BINARY}}
_TYPES = {"css": "text/css", "json": "application/json", "txt": "text/plain"}
# Like ComfyUI, read any value but the expected word as the default.
_Flag = Annotated[str, Query(max_length=16)]


def new_userdata_routes(files: UserdataStore) -> APIRouter:
    """Return the routes that list, read, write, move and delete a user's files."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/userdata")
    async def list_files(
        request: Request,
        dir: str = "",
        recurse: _Flag = "",
        full_info: _Flag = "",
        split: _Flag = "",
    ) -> list[Any]:
        """List your files in the folder `dir`."""
        if not dir:
            raise InvalidRequest("the query parameter dir is missing: name a folder", field="dir")
        return list_folder(
            await files.list(get_userdata_scope(context(request.scope).caller)), normalize_path(dir),
            recurse=_is_true(recurse), full_info=_is_true(full_info), split=_is_true(split),
        )  # fmt: skip

    @router.get("/v2/userdata", name="list_all")
    async def list_files_and_folders(request: Request, path: str = "") -> list[dict[str, Any]]:
        """List your files and folders below the folder `path`."""
        all_files = await files.list(get_userdata_scope(context(request.scope).caller))
        return list_folder_v2(all_files, normalize_path(path) if path.strip("/") else "")

    @router.get(
        "/userdata/{file:path}",
        response_class=Response,
        responses={200: {"content": FILE_CONTENT}},
        openapi_extra=_FILE_PATH,
        name="read",
    )
    async def read_file(request: Request) -> Response:
        """Return the content of a file."""
        path, _ = _parse_paths(request)
        content = await files.read(get_userdata_scope(context(request.scope).caller), path)
        media_type = _TYPES.get(path.rpartition(".")[2].lower(), "application/octet-stream")
        return Response(content, media_type=media_type, headers=_FILE_HEADERS)

    @router.post("/userdata/{file:path}/move/{dest:path}", openapi_extra=_MOVE_PATHS)
    @router.post("/userdata/{file:path}", openapi_extra=_BODY)
    async def write(request: Request, overwrite: _Flag = "", full_info: _Flag = "") -> Any:
        """Store the body as a file, or move a file.

        With `overwrite=false`, an existing file is kept and the status is 409.
        """
        scope = get_userdata_scope(context(request.scope).caller)
        path, destination = _parse_paths(request)
        overwrites = overwrite != "false"
        if destination is not None:
            file = await files.move(scope, path, destination, overwrite=overwrites)
        else:
            file = await files.write(scope, path, await request.body(), overwrite=overwrites)
        return build_file_entry(file) if _is_true(full_info) else file.path

    @router.delete(
        "/userdata/{file:path}", status_code=204, openapi_extra=_FILE_PATH, name="delete"
    )
    async def delete_file(request: Request) -> None:
        """Delete a file."""
        path, _ = _parse_paths(request)
        await files.delete(get_userdata_scope(context(request.scope).caller), path)

    return router


def _parse_paths(request: Request) -> tuple[str, str | None]:
    """Return the path of the file and, if the request moves the file, the path to move it to.

    Both are parsed from the undecoded URL, in which an encoded slash is part of a file's path.
    """
    raw_path = (request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    return parse_paths(raw_path.partition("?")[0].partition("/userdata/")[2])


def _is_true(flag: str) -> bool:
    return flag.lower() == "true"
