"""Implements ``moyin jobs``, which lists, shows, cancels, deletes, retries and watches jobs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from moyin.cli.following import follow_job
from moyin.cli.job_filters import (
    After,
    Before,
    Kind,
    Metadata,
    Pool,
    Search,
    Status,
    Template,
    build_filter,
    change_jobs,
    read_jobs,
)
from moyin.cli.job_view import describe_status, measure_progress, print_job
from moyin.cli.screen import (
    AsJson,
    AsJsonLines,
    errors,
    format_count,
    out,
    print_json,
    print_json_line,
    print_table,
)
from moyin.cli.session import exit_unless_succeeded, run_with_gateway, send_request
from moyin.client.gateway import GatewayClient, ServerSentEvent

app = typer.Typer(help="Jobs: list, show, cancel, delete, retry, watch.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id (Task ID).")]
MaybeJobId = Annotated[
    str | None, typer.Argument(metavar="ID", help="The job's id (Task ID); or use filters.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the number of matching jobs and change nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
# The exit status if some of the matching jobs were not changed.
SOME_SKIPPED = 3


@app.command("list")
def list_jobs(
    status: Status = None,
    kind: Kind = None,
    pool: Pool = None,
    template: Template = None,
    metadata: Metadata = None,
    after: After = None,
    before: Before = None,
    search: Search = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of jobs, newest first.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List your jobs, or those that match all filters.

    Piped output has tab-separated id, kind, status, progress and creation time.
    """
    where = build_filter(
        status=status, kind=kind, pool=pool, template=template, metadata=metadata, after=after,
        before=before, search=search,
    )  # fmt: skip
    jobs = run_with_gateway(lambda gateway: read_jobs(gateway, where, limit))
    if as_json:
        print_json(jobs)
    elif out.is_terminal:
        print_table(
            ("id", "kind", "status", "created (UTC)"),
            ((j["id"], j["kind"], describe_status(j), j["created_at"]) for j in jobs),
            empty_text="no jobs match" if where else "no jobs: `moyin render GRAPH` makes one",
        )
    else:
        print_table(
            (),
            (
                (j["id"], j["kind"], j["status"], f"{measure_progress(j):.0%}", j["created_at"])
                for j in jobs
            ),
        )


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job with the outputs of its finished steps; piped output is JSON."""
    job = run_with_gateway(lambda gateway: gateway.call("GET", _build_path(job_id)))
    if as_json or not out.is_terminal:
        print_json(job)
    else:
        print_job(job)


@app.command()
def cancel(
    job_id: MaybeJobId = None,
    status: Status = None,
    kind: Kind = None,
    pool: Pool = None,
    template: Template = None,
    metadata: Metadata = None,
    after: After = None,
    before: Before = None,
    search: Search = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel a job, or the queued and running jobs that match all filters.

    Exit 3 if some of the matching jobs had already ended.
    """
    where = build_filter(
        status=status, kind=kind, pool=pool, template=template, metadata=metadata, after=after,
        before=before, search=search,
    )  # fmt: skip
    if _is_single_job(job_id, where, dry_run):
        job = run_with_gateway(
            lambda gateway: gateway.call("POST", f"{_build_path(job_id)}/cancel")
        )
        if as_json:
            print_json(job)
        else:
            out.print(f"{job['id']} {job['status']}")
        return
    counts = _change_matching("cancel", where, dry_run=dry_run, is_confirmed=yes)
    _print_counts(counts, as_json, "cancelled", "had ended")


@app.command()
def delete(
    job_id: MaybeJobId = None,
    status: Status = None,
    kind: Kind = None,
    pool: Pool = None,
    template: Template = None,
    metadata: Metadata = None,
    after: After = None,
    before: Before = None,
    search: Search = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete an ended job, or the ended jobs that match all filters, with their files.

    Exit 3 if some of the matching jobs were not deleted, because they have not ended.
    """
    where = build_filter(
        status=status, kind=kind, pool=pool, template=template, metadata=metadata, after=after,
        before=before, search=search,
    )  # fmt: skip
    if _is_single_job(job_id, where, dry_run):
        send_request("DELETE", _build_path(job_id))
        if as_json:
            print_json({"id": job_id, "deleted": True})
        else:
            out.print(f"{job_id} deleted")
        return
    counts = _change_matching("delete", where, dry_run=dry_run, is_confirmed=yes)
    _print_counts(counts, as_json, "deleted", "were open")


@app.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Resume a failed or cancelled job after its last finished step."""
    job = run_with_gateway(lambda gateway: gateway.call("POST", f"{_build_path(job_id)}/retry"))
    if as_json:
        print_json(job)
    else:
        out.print(f"{job['id']} {job['status']}")


@app.command()
def watch(job_id: JobId, as_json: AsJsonLines = False) -> None:
    """Follow a job until it ends; exit 3 if it does not succeed.

    With --json, print a line with the type, id and data of each event. The data of the last event
    is the ended job.
    """

    async def follow_to_end(gateway: GatewayClient) -> None:
        on_event = _print_event if as_json else None
        job = await follow_job(gateway, job_id, shows_bar=not as_json, on_event=on_event)
        if not as_json:
            out.print(job["status"])
        if job["error"]:
            errors.print(f"{job['error']['code']}: {job['error']['message']}", markup=False)
        exit_unless_succeeded(job)

    run_with_gateway(follow_to_end)


def _print_event(event: ServerSentEvent) -> None:
    print_json_line({"type": event.type, "id": event.id, "data": event.data})


def _is_single_job(job_id: str | None, where: dict[str, Any], dry_run: bool) -> bool:
    """Return True if the arguments name a job, and False if they have filters.

    Raises:
        typer.BadParameter: there is no job's id and no filter, or a job's id is combined with
            filters or --dry-run.
    """
    if job_id is None and not where:
        raise typer.BadParameter("name a job's id, or at least one filter")
    if job_id is not None and (where or dry_run):
        raise typer.BadParameter("a job's id cannot be combined with filters or --dry-run")
    return job_id is not None


def _change_matching(
    action: str, where: dict[str, Any], *, dry_run: bool, is_confirmed: bool
) -> dict[str, Any]:
    async def send_change(gateway: GatewayClient, *, counts_only: bool) -> dict[str, Any]:
        return await change_jobs(gateway, f"/jobs/{action}", where, dry_run=counts_only)

    if not dry_run and not is_confirmed:
        matched_count = run_with_gateway(lambda gateway: send_change(gateway, counts_only=True))[
            "matched"
        ]
        question = f"{_describe_matches(matched_count)}. {action.capitalize()} them?"
        typer.confirm(question, abort=True, err=True)
    return run_with_gateway(lambda gateway: send_change(gateway, counts_only=dry_run))


def _print_counts(
    counts: dict[str, Any], as_json: bool, done_word: str, skipped_words: str
) -> None:
    if as_json:
        print_json(counts)
    elif counts["dry_run"]:
        out.print(_describe_matches(counts["matched"]))
    else:
        skipped_note = f"; {counts['skipped']:,} {skipped_words}" if counts["skipped"] else ""
        out.print(
            f"{done_word} {counts['done']:,} of {format_count(counts['matched'], 'job')}{skipped_note}"
        )
    if counts["skipped"]:
        raise typer.Exit(SOME_SKIPPED)


def _build_path(job_id: str | None) -> str:
    return f"/jobs/{quote(job_id or '', safe='')}"


def _describe_matches(job_count: int) -> str:
    return f"{format_count(job_count, 'job')} {'matches' if job_count == 1 else 'match'}"
