"""Implements ``moyin artifacts``, which lists, downloads, stores, links and deletes files."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

import typer
from rich.filesize import decimal

from moyin.cli.following import choose_target_path, create_folder
from moyin.cli.pictures import PictureProtocol, detect_protocol, show_picture
from moyin.cli.screen import AsJson, AsLocalJson, out, print_json, print_outcome, print_records
from moyin.cli.session import build_path, run_with_gateway, send_request
from moyin.client.errors import RequestRefused
from moyin.client.gateway import GatewayClient

app = typer.Typer(help="Stored files: list, get, archive, put, link, delete.", no_args_is_help=True)
ArtifactId = Annotated[str, typer.Argument(metavar="ID", help="The artifact's id.")]
ShowPictures = Annotated[
    bool,
    typer.Option(
        "--show/--no-show", help="Show pictures in terminals that can (kitty, iTerm2, sixels)."
    ),
]
_MAX_PAGE = 200
_CHUNK = 256 * 1024


@app.command("list")
def list_artifacts(
    job: Annotated[str | None, typer.Option(help="Only files of this job.")] = None,
    media_type: Annotated[
        str | None, typer.Option("--type", help="Such as image/png, or `image/*`.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="First time, such as 2026-01-31T12:00:00Z.")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Time before which files were stored.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of files, newest first.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List your files; piped output has tab-separated id, name, type, bytes, job and time."""
    filters = {
        "job": job,
        "media_type": media_type,
        "created_after": after,
        "created_before": before,
    }
    artifacts = run_with_gateway(lambda gateway: _read_artifacts(gateway, filters, limit))
    if as_json:
        print_json(artifacts)
        return
    print_records(
        ("id", "name", "type", "size", "job", "created (UTC)"),
        map(_build_row, artifacts),
        right_aligned=("size",),
        optional_columns=("job", "created (UTC)"),
        empty_text="no files: renders make some, and `moyin artifacts put FILE` stores one",
    )


@app.command()
def get(
    artifact_id: ArtifactId,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder, or the path of the new file.")
    ] = Path(),
    show: ShowPictures = True,
    as_json: AsLocalJson = False,
) -> None:
    """Download a file and print its path; an existing file is replaced if --output names it."""

    async def download_file(gateway: GatewayClient) -> Path:
        path = _build_path(artifact_id)
        target_path = output
        if output.is_dir():
            await asyncio.to_thread(create_folder, output)
            target_path = choose_target_path(
                output, await _read_file_name(gateway, path) or artifact_id
            )
        await gateway.download(path, target_path)
        return target_path

    saved_path = run_with_gateway(download_file)
    if as_json:
        print_json({"id": artifact_id, "path": str(saved_path)})
    else:
        print_files([saved_path], show=show)


@app.command()
def put(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The file.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the stored file; default: that of FILE.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store a file, and print its id for use in inputs of templates and `LoadImage` nodes."""
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"

    async def upload_file(gateway: GatewayClient) -> Any:
        async with gateway.open(
            "POST",
            build_path("/artifacts", {"name": name or file.name}),
            _read_chunks(file),
            headers={"content-type": media_type},
            is_encoded=True,
            is_stream=True,
        ) as response:
            return await response.json()

    artifact = run_with_gateway(upload_file)
    if as_json:
        print_json(artifact)
    else:
        out.print(artifact["id"], markup=False)


@app.command()
def link(
    artifact_id: ArtifactId,
    seconds: Annotated[
        int,
        typer.Option("--seconds", min=1, max=86_400, help="Seconds for which the link is valid."),
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Print a link that works without a key until it expires."""

    async def create_link(gateway: GatewayClient) -> tuple[str, Any]:
        body = {"expires_in": seconds}
        return gateway.url, await gateway.call("POST", f"{_build_path(artifact_id)}/link", body)

    url, created_link = run_with_gateway(create_link)
    if as_json:
        print_json(created_link)
    else:
        out.print(f"{url}{created_link['url']}", markup=False)


@app.command()
def archive(
    artifact_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="The artifacts' ids, at most 200.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="All files of this job instead.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder, or the path of the new file.")
    ] = Path(),
    as_json: AsLocalJson = False,
) -> None:
    """Download several files as one ZIP archive, and print its path."""
    body: dict[str, Any] = {"artifacts": artifact_ids or []}
    if job is not None:
        body["job"] = job

    async def download_archive(gateway: GatewayClient) -> Path:
        archive_link = await gateway.call("POST", "/artifacts/archive", body)
        target_path = output
        if output.is_dir():
            await asyncio.to_thread(create_folder, output)
            target_path = choose_target_path(
                output, unquote(archive_link["url"].rpartition("/")[2])
            )
        await gateway.download(archive_link["url"], target_path)
        return target_path

    saved_path = run_with_gateway(download_archive)
    if as_json:
        print_json({"path": str(saved_path)})
    else:
        print_files([saved_path], show=False)


@app.command()
def delete(artifact_id: ArtifactId, as_json: AsLocalJson = False) -> None:
    """Delete an upload. To delete a file that a job made, delete the job: `moyin jobs delete`."""
    send_request("DELETE", _build_path(artifact_id))
    outcome = {"id": artifact_id, "deleted": True}
    print_outcome(outcome, f"{artifact_id} deleted", as_json=as_json)


def print_files(paths: list[Path], *, show: bool, indent: str = "") -> None:
    """Print the paths of files, and above each path its picture if the terminal can show it."""
    protocol: PictureProtocol | None = detect_protocol() if show and paths else None
    for path in paths:
        if protocol is not None:
            show_picture(path, protocol)
        out.print(f"{indent}{path}", markup=False, style="bold" if out.is_terminal else None)


async def _read_file_name(gateway: GatewayClient, path: str) -> str | None:
    """Return the file name that the gateway sends for ``path``, or None if it sends none."""
    try:
        async with gateway.open("HEAD", path) as response:
            disposition = response.content_disposition
    except RequestRefused:
        # A response to HEAD has no body, so the download that follows reports the reason.
        return None
    return disposition.filename if disposition is not None else None


def _build_row(artifact: dict[str, Any]) -> tuple[object, ...]:
    size = artifact["size"]
    return (
        artifact["id"],
        artifact["name"],
        artifact["media_type"],
        decimal(size) if out.is_terminal else size,
        artifact["job"],
        artifact["created_at"],
    )


async def _read_artifacts(
    gateway: GatewayClient, filters: dict[str, Any], limit: int
) -> list[dict[str, Any]]:
    """Return up to ``limit`` files, newest first; an empty page is not taken for the last one.

    Args:
        filters: the query parameters of ``GET /artifacts`` that select files.
    """
    artifacts: list[dict[str, Any]] = []
    cursor = None
    while True:
        page_size = min(limit - len(artifacts), _MAX_PAGE)
        path = build_path("/artifacts", {**filters, "limit": page_size, "cursor": cursor})
        page = await gateway.call("GET", path)
        artifacts += page["artifacts"]
        cursor = page["next_cursor"]
        if cursor is None or len(artifacts) >= limit:
            return artifacts


async def _read_chunks(file: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as opened_file:
        while chunk := await asyncio.to_thread(opened_file.read, _CHUNK):
            yield chunk


def _build_path(artifact_id: str) -> str:
    return f"/artifacts/{quote(artifact_id, safe='')}"
