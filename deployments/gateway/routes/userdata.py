"""ComfyUI's ``/userdata``: files that a person keeps in its frontend."""

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
from moyin.domain.userdata import userdata_scope
from moyin.errors import InvalidRequest
from moyin.store.userdata import UserdataStore

__all__ = ["userdata_routes"]

# Whatever it is, it is a person's own and no page of ours.
_FILE = {
    "cache-control": "no-store",
    "content-security-policy": "sandbox; default-src 'none'",
}
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"format": "binary"}}}


def _path(name: str, description: str) -> dict[str, Any]:
    """The handlers read the address as it was sent, of which FastAPI knows nothing."""
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name, "in": "path", "required": True, "description": description, "schema": schema
    }  # fmt: skip


_FILE_PATH: dict[str, Any] = {
    "parameters": [_path("file", "The file's path, a slash in it as `%2F`.")]
}
_MOVE_PATHS: dict[str, Any] = {
    "parameters": [*_FILE_PATH["parameters"], _path("dest", "Where it goes, likewise.")]
}
_BODY: dict[str, Any] = {**_FILE_PATH, "requestBody": {"content": _BINARY}}
_TYPES = {"css": "text/css", "json": "application/json", "txt": "text/plain"}
# A word, as ComfyUI reads it: everything but the one word that counts is the default.
_Word = Annotated[str, Query(max_length=16)]


def userdata_routes(files: UserdataStore) -> APIRouter:
    """The routes of files."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/userdata")
    async def list_files(
        request: Request,
        dir: str = "",
        recurse: _Word = "",
        full_info: _Word = "",
        split: _Word = "",
    ) -> list[Any]:
        """The caller's files in a folder."""
        if not dir:
            raise InvalidRequest("name a folder", field="dir")
        return listing(
            await files.list(userdata_scope(context(request.scope).caller)),
            clean_path(dir),
            recurse=_is(recurse, "true"),
            full_info=_is(full_info, "true"),
            split=_is(split, "true"),
        )

    @router.get("/v2/userdata")
    async def list_all(request: Request, path: str = "") -> list[dict[str, Any]]:
        """The caller's files and folders."""
        found = await files.list(userdata_scope(context(request.scope).caller))
        return listing_v2(found, clean_path(path) if path.strip("/") else "")

    @router.get(
        "/userdata/{file:path}",
        response_class=Response,
        responses={200: {"content": FILE}},
        openapi_extra=_FILE_PATH,
    )
    async def read(request: Request) -> Response:
        """A file."""
        path, _ = _named(request)
        content = await files.read(userdata_scope(context(request.scope).caller), path)
        media_type = _TYPES.get(path.rpartition(".")[2].lower(), "application/octet-stream")
        return Response(content, media_type=media_type, headers=_FILE)

    @router.post("/userdata/{file:path}/move/{dest:path}", openapi_extra=_MOVE_PATHS)
    @router.post("/userdata/{file:path}", openapi_extra=_BODY)
    async def write(request: Request, overwrite: _Word = "", full_info: _Word = "") -> Any:
        """Keep the body as a file, or move one. `overwrite=false`: 409 where there is one."""
        shelf = userdata_scope(context(request.scope).caller)
        path, to = _named(request)
        replace = overwrite != "false"
        if to is not None:
            kept = await files.move(shelf, path, to, overwrite=replace)
        else:
            kept = await files.write(shelf, path, await request.body(), overwrite=replace)
        return file_info(kept) if _is(full_info, "true") else kept.path

    @router.delete("/userdata/{file:path}", status_code=204, openapi_extra=_FILE_PATH)
    async def delete(request: Request) -> None:
        """Remove a file."""
        path, _ = _named(request)
        await files.delete(userdata_scope(context(request.scope).caller), path)

    return router


def _named(request: Request) -> tuple[str, str | None]:
    """The path in the URL as it was sent: an encoded slash belongs to the name."""
    raw = (request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    return paths_in(raw.partition("?")[0].partition("/userdata/")[2])


def _is(word: str, wanted: str) -> bool:
    return word.lower() == wanted
