"""Implements ``moyin batches``, which runs files of text requests at low priority."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from moyin.cli.job_view import print_batch
from moyin.cli.screen import (
    AlwaysJson,
    AsJson,
    AsJsonLines,
    errors,
    out,
    print_json,
    print_json_line,
    print_table,
)
from moyin.cli.session import JOB_DID_NOT_SUCCEED, run_with_gateway
from moyin.client.gateway import GatewayClient

app = typer.Typer(
    help="Batches of text requests: submit a file, follow, cancel, read results.",
    no_args_is_help=True,
)
BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]
_BATCHES, _FILES = "/v1/batches", "/v1/files"
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_POLL_SECONDS = 1.0
_CHUNK = 256 * 1024


@app.command("list")
def list_batches(
    limit: Annotated[
        int, typer.Option(min=1, max=100, help="Number of batches, newest first.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List your batches; piped output has tab-separated id, status, lines, counts and time."""
    page = run_with_gateway(lambda gateway: gateway.call("GET", f"{_BATCHES}?limit={limit}"))
    if as_json:
        print_json(page)
        return
    print_table(
        ("id", "status", "lines", "answered", "failed", "created (UTC)"),
        map(_build_row, page["data"]),
        right_aligned=("lines", "answered", "failed"),
        optional_columns=("created (UTC)",),
        empty_text="no batches: `moyin batches submit FILE` makes one",
    )


@app.command()
def submit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, help="JSON lines in OpenAI's batch format."
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(help="Endpoint that every line calls; default: the first line's url."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Metadata; repeat for more.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the batch; exit 3 unless it is completed.")
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Upload a file of requests and run it as a batch; print the batch's id.

    With --json, print the new batch as one line; with --wait, print a line after each change too.
    """
    metadata = dict(_split_label(text) for text in label or ())
    endpoint_path = endpoint or _read_endpoint(file)

    async def upload_and_start(gateway: GatewayClient) -> None:
        uploaded_file = await gateway.post_form(_FILES, file, {"purpose": "batch"})
        body = {
            "input_file_id": uploaded_file["id"],
            "endpoint": endpoint_path,
            "completion_window": "24h",
        }
        batch = await gateway.call("POST", _BATCHES, {**body, "metadata": metadata})
        if as_json:
            print_json_line(batch)
        else:
            out.print(batch["id"])
        if wait:
            await _follow_batch(gateway, batch["id"], as_json)

    run_with_gateway(upload_and_start)


@app.command()
def show(batch_id: BatchId, as_json: AsJson = False) -> None:
    """Show a batch; piped output is JSON."""
    batch = run_with_gateway(lambda gateway: gateway.call("GET", f"{_BATCHES}/{batch_id}"))
    if as_json or not out.is_terminal:
        print_json(batch)
    else:
        print_batch(batch)


@app.command()
def watch(batch_id: BatchId, as_json: AsJsonLines = False) -> None:
    """Follow a batch until it ends; exit 3 unless it is completed.

    With --json, print the batch as one line now, and again after each change.
    """
    run_with_gateway(lambda gateway: _follow_batch(gateway, batch_id, as_json))


@app.command()
def cancel(batch_id: BatchId, as_json: AsJson = False) -> None:
    """Cancel a batch, and keep the answers that it has so far."""
    batch = run_with_gateway(lambda gateway: gateway.call("POST", f"{_BATCHES}/{batch_id}/cancel"))
    if as_json:
        print_json(batch)
    else:
        out.print(f"{batch['id']} {batch['status']}")


@app.command()
def results(
    batch_id: BatchId,
    failed: Annotated[
        bool,
        typer.Option("--errors", help="Print failed and unprocessed lines instead of answers."),
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--to", dir_okay=False, help="Write to this file.")
    ] = None,
    _: AlwaysJson = True,
) -> None:
    """Print the results of an ended batch, one JSON object per line, in the order of the input."""

    async def write_results(gateway: GatewayClient) -> None:
        batch = await gateway.call("GET", f"{_BATCHES}/{batch_id}")
        if batch["status"] not in _ENDED:
            errors.print(f"the batch is {batch['status']}: results are available when it has ended")
            raise typer.Exit(1)
        file_id = batch["error_file_id" if failed else "output_file_id"]
        if file_id is None:
            errors.print(
                "the batch has no failed or unprocessed lines"
                if failed
                else "the batch has no answers: --errors prints its failed lines"
            )
            return
        path = f"{_FILES}/{file_id}/content"
        if to is not None:
            await gateway.download(path, to)
            return
        async with gateway.open("GET", path, is_stream=True) as response:
            async for chunk in response.content.iter_chunked(_CHUNK):
                await asyncio.to_thread(sys.stdout.buffer.write, chunk)
        sys.stdout.buffer.flush()

    run_with_gateway(write_results)


async def _follow_batch(gateway: GatewayClient, batch_id: str, as_json: bool) -> None:
    """Print the progress of a batch until it ends.

    Args:
        as_json: True to print the whole batch as a JSON line after each change of its progress.
    """
    last_progress_line = ""
    while True:
        batch = await gateway.call("GET", f"{_BATCHES}/{batch_id}")
        counts = batch["request_counts"]
        done_count = counts["completed"] + counts["failed"]
        progress_line = (
            f"{batch['status']} {done_count}/{counts['total']}, {counts['failed']} failed"
        )
        if progress_line != last_progress_line:
            if as_json:
                print_json_line(batch)
            else:
                errors.print(progress_line)
            last_progress_line = progress_line
        if batch["status"] in _ENDED:
            break
        await asyncio.sleep(_POLL_SECONDS)
    for problem in (batch["errors"] or {}).get("data", ()):
        line_prefix = "" if problem["line"] is None else f"line {problem['line']}: "
        errors.print(f"{line_prefix}{problem['code']}: {problem['message']}", markup=False)
    if batch["status"] != "completed":
        raise typer.Exit(JOB_DID_NOT_SUCCEED)


def _build_row(batch: dict[str, Any]) -> tuple[str, ...]:
    counts = batch["request_counts"]
    created_at = datetime.fromtimestamp(batch["created_at"], UTC)
    return (
        batch["id"],
        batch["status"],
        str(counts["total"]),
        str(counts["completed"]),
        str(counts["failed"]),
        f"{created_at:%Y-%m-%d %H:%M:%S}",
    )


def _read_endpoint(file: Path) -> str:
    """Return the member ``url`` of the first request in a file."""
    with file.open("rb") as opened_file:
        first_line = opened_file.readline()
    try:
        url = json.loads(first_line)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise typer.BadParameter(
            "the file's first line has no url: name the endpoint with --endpoint"
        )
    return url


def _split_label(label: str) -> tuple[str, str]:
    name, equals, value = label.partition("=")
    if not equals:
        raise typer.BadParameter(f"--label must be NAME=VALUE, but is {label!r}")
    return name, value
