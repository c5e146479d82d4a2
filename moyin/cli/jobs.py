"""Implements ``moyin jobs``, which lists, shows, cancels, retries and watches jobs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moyin.cli.following import follow
from moyin.cli.screen import errors, out, print_json, print_table
from moyin.cli.session import exit_unless_succeeded, with_gateway
from moyin.client.gateway import GatewayClient

app = typer.Typer(help="Jobs: list, show, cancel, retry, watch.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id (Task ID).")]


@app.command("list")
def list_jobs(
    status: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Number of jobs, newest first.")] = 20,
) -> None:
    """List your jobs; piped output has id, kind, status, progress and creation time, by tabs."""
    query = f"/jobs?limit={limit}" + (f"&status={status}" if status else "")
    page = with_gateway(lambda gateway: gateway.call("GET", query))
    print_table(
        ("id", "kind", "status", "progress", "created"),
        (
            (j["id"], j["kind"], j["status"], _format_percent(j), j["created_at"])
            for j in page["jobs"]
        ),
    )


@app.command()
def show(job_id: JobId) -> None:
    """Print a job as JSON, with the outputs of its finished steps."""
    print_json(with_gateway(lambda gateway: gateway.call("GET", f"/jobs/{job_id}")))


@app.command()
def cancel(job_id: JobId) -> None:
    """Cancel a job."""
    job = with_gateway(lambda gateway: gateway.call("POST", f"/jobs/{job_id}/cancel"))
    out.print(f"{job['id']} {job['status']}")


@app.command()
def retry(job_id: JobId) -> None:
    """Resume a failed or cancelled job after its last finished step."""
    job = with_gateway(lambda gateway: gateway.call("POST", f"/jobs/{job_id}/retry"))
    out.print(f"{job['id']} {job['status']}")


@app.command()
def watch(job_id: JobId) -> None:
    """Follow a job until it ends; exit 3 if it does not succeed."""

    async def work(gateway: GatewayClient) -> None:
        job = await follow(gateway, job_id)
        out.print(job["status"])
        if job["error"]:
            errors.print(f"{job['error']['code']}: {job['error']['message']}")
        exit_unless_succeeded(job)

    with_gateway(work)


def _format_percent(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if job["status"] == "succeeded":
        return "100%"
    within = progress["value"] / (progress["max"] or 1)
    return f"{(progress['step'] + within) / max(1, job['steps']):.0%}"
