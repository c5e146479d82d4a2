"""Builds the requests for the gateway's routes as values, which `Client` and `AsyncClient` send."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import httpx

from moyin_client.errors import MoyinError
from moyin_client.files import Upload
from moyin_client.models import (
    Artifact,
    BulkResult,
    EventToken,
    Job,
    Link,
    Page,
    Picture,
    UsageReport,
)
from moyin_client.parsing import parse, parse_json
from moyin_client.requests import (
    ArtifactFilter,
    JobConditions,
    JobFilter,
    JobOptions,
    UsageQuery,
    Work,
    build_bulk,
    build_job,
    build_query,
    build_usage_query,
)
from moyin_client.retry import RetryPolicy

T = TypeVar("T")
_ID = re.compile(r"[\w~-][\w.~-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[T]):
    """A request, and how to parse its response.

    Attributes:
        parse: a function that returns the result, given a response whose body has been read.
        pieces: a function that returns the request's content, called for each try.
        settled_by: error codes that show that an earlier try, whose response was lost, has
            succeeded.
        read_back: the call that returns the result after such an error; None if there is no result.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    pieces: Callable[[], Iterator[bytes]] | None = None
    settled_by: frozenset[str] = frozenset()
    read_back: Call[T] | None = None

    def to_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``httpx.Client.stream`` for the request, without its content."""
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "headers": self.headers,
            "json": self.json,
        }


class Tries:
    """Counts the failed tries of a call, and decides what follows an error."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._may_be_done = False

    def has_settled(self, call: Call[Any], error: MoyinError) -> bool:
        """Return True if the error proves that an earlier try, with a lost response, succeeded."""
        return self._may_be_done and error.code in call.settled_by

    def pause_after(self, error: MoyinError) -> float:
        """Return the seconds to wait before the next try, or raise the error if it is final."""
        self._failures += 1
        # With 429, a limit was exceeded, so the gateway has not done anything.
        self._may_be_done = self._may_be_done or error.status != 429
        return self._policy.pause_after(error, self._failures)


def build_http_options(url: str, api_key: str, timeout: float) -> dict[str, Any]:
    """Return the arguments with which ``httpx.Client`` or ``httpx.AsyncClient`` is created."""
    return {
        "base_url": url,
        "headers": {"authorization": f"Bearer {api_key}", "user-agent": "moyin-client"},
        # No limit on waiting for a connection: a stream of events keeps its own for hours.
        "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
    }


def submit(work: Work, options: JobOptions, key: str | None) -> Call[Job]:
    """Return the call that submits a job, with the same idempotency key in every try."""
    return Call(
        method="POST",
        path="/jobs",
        json=build_job(work, options),
        headers={"idempotency-key": key or uuid.uuid4().hex},
        parse=_parse_as(Job),
    )


def get_job(job: Job | str) -> Call[Job]:
    return Call(method="GET", path=f"/jobs/{_get_id(job)}", parse=_parse_as(Job))


def list_jobs(conditions: JobFilter, cursor: str | None) -> Call[Page[Job]]:
    return Call(
        method="GET", path="/jobs", params=build_query(conditions, cursor),
        parse=_parse_page(Job, "jobs"),
    )  # fmt: skip


def cancel(job: Job | str) -> Call[Job]:
    return Call(
        method="POST", path=f"/jobs/{_get_id(job)}/cancel", parse=_parse_as(Job),
        settled_by=frozenset({"job_finished"}), read_back=get_job(job),
    )  # fmt: skip


def retry(job: Job | str) -> Call[Job]:
    return Call(
        method="POST", path=f"/jobs/{_get_id(job)}/retry", parse=_parse_as(Job),
        settled_by=frozenset({"job_not_finished", "job_finished"}), read_back=get_job(job),
    )  # fmt: skip


def delete_job(job: Job | str) -> Call[None]:
    return Call(
        method="DELETE", path=f"/jobs/{_get_id(job)}", parse=_ignore,
        settled_by=frozenset({"job_not_found"}),
    )  # fmt: skip


def follow(job: Job | str, last_event_id: str | None, previews: bool) -> Call[None]:
    headers = {"accept": "text/event-stream"}
    if last_event_id is not None:
        headers["last-event-id"] = last_event_id
    return Call(
        method="GET", path=f"/jobs/{_get_id(job)}/events", headers=headers, parse=_ignore,
        params={"previews": "true"} if previews else {},
    )  # fmt: skip


def create_token(job: Job | str, expires_in: int) -> Call[EventToken]:
    return Call(
        method="POST", path=f"/jobs/{_get_id(job)}/token", json={"expires_in": expires_in},
        parse=_parse_as(EventToken),
    )  # fmt: skip


def get_preview(job: Job | str) -> Call[Picture]:
    def read(response: httpx.Response) -> Picture:
        media_type = response.headers.get("content-type", "")
        return Picture(content=response.content, media_type=media_type)

    return Call(method="GET", path=f"/jobs/{_get_id(job)}/preview", parse=read)


def change_jobs(
    action: Literal["cancel", "delete"],
    conditions: JobConditions,
    dry_run: bool,
    cursor: str | None,
) -> Call[Page[BulkResult]]:
    """Return the call that cancels or deletes many jobs.

    The call returns a `Page` whose only item has the counts, with a cursor if jobs are left.
    """

    def read(response: httpx.Response) -> Page[BulkResult]:
        content = parse_json(response.content)
        return Page(items=(parse(BulkResult, content),), next_cursor=content.get("next_cursor"))

    return Call(
        method="POST", path=f"/jobs/{action}", json=build_bulk(conditions, dry_run, cursor),
        parse=read,
    )  # fmt: skip


def get_graph(job: Job | str, step: int) -> Call[Mapping[str, Any]]:
    def read(response: httpx.Response) -> Mapping[str, Any]:
        graph = parse_json(response.content)
        if not isinstance(graph, dict):
            raise MoyinError("the response is not a graph", code="malformed_response")
        return graph

    return Call(
        method="GET", path=f"/jobs/{_get_id(job)}/graph", params={"step": str(step)}, parse=read
    )


def get_usage(query: UsageQuery) -> Call[UsageReport]:
    def read(response: httpx.Response) -> UsageReport:
        report = parse_json(response.content)
        if isinstance(report, dict):
            # `from` is a keyword of Python.
            report = {**report, "since": report.get("from"), "until": report.get("to")}
        return parse(UsageReport, report)

    return Call(method="GET", path="/v1/usage", params=build_usage_query(query), parse=read)


def sum_results(pages: Iterable[BulkResult]) -> BulkResult:
    """Return the sums of the counts of several requests."""
    results = list(pages)
    return BulkResult(
        matched=sum(result.matched for result in results),
        done=sum(result.done for result in results),
        skipped=sum(result.skipped for result in results),
    )


def upload(file: Upload, key: str | None) -> Call[Artifact]:
    """Return the call that stores a file, with the same idempotency key in every try."""
    return Call(
        method="POST",
        path="/artifacts",
        params={"name": file.name} if file.name else {},
        headers={
            "content-type": file.media_type,
            "content-length": str(file.size),
            "idempotency-key": key or uuid.uuid4().hex,
        },
        pieces=file.read_pieces,
        parse=_parse_as(Artifact),
    )


def download(artifact: Artifact | str, width: int | None) -> Call[None]:
    return Call(
        method="GET", path=f"/artifacts/{_get_id(artifact)}", parse=_ignore,
        params={} if width is None else {"w": str(width)},
    )  # fmt: skip


def list_artifacts(conditions: ArtifactFilter, cursor: str | None) -> Call[Page[Artifact]]:
    return Call(
        method="GET", path="/artifacts", params=build_query(conditions, cursor),
        parse=_parse_page(Artifact, "artifacts"),
    )  # fmt: skip


def delete_artifact(artifact: Artifact | str) -> Call[None]:
    return Call(
        method="DELETE", path=f"/artifacts/{_get_id(artifact)}", parse=_ignore,
        settled_by=frozenset({"artifact_not_found"}),
    )  # fmt: skip


def link(artifact: Artifact | str, expires_in: int, base_url: str) -> Call[Link]:
    def read(response: httpx.Response) -> Link:
        relative = parse(Link, parse_json(response.content))
        return Link(url=base_url + relative.url, expires_at=relative.expires_at)

    return Call(
        method="POST", path=f"/artifacts/{_get_id(artifact)}/link",
        json={"expires_in": expires_in}, parse=read,
    )  # fmt: skip


def get_webhook_secret() -> Call[str]:
    def read(response: httpx.Response) -> str:
        return parse(_Secret, parse_json(response.content)).secret

    return Call(method="GET", path="/jobs/webhook-secret", parse=read)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Secret:
    secret: str


def _get_id(item: Job | Artifact | str) -> str:
    """Return the id of a job or file, or raise ValueError if it is unsafe in the path of a URL."""
    name = item if isinstance(item, str) else item.id
    if not _ID.fullmatch(name):
        raise ValueError(f"{name!r} is not the id of a job or file")
    return name


def _parse_as(shape: type[T]) -> Callable[[httpx.Response], T]:
    return lambda response: parse(shape, parse_json(response.content))


def _parse_page(shape: type[T], name: str) -> Callable[[httpx.Response], Page[T]]:
    def read(response: httpx.Response) -> Page[T]:
        page = parse_json(response.content)
        items = page.get(name) if isinstance(page, dict) else None
        if not isinstance(items, list):
            raise MoyinError("the response is not a page", code="malformed_response")
        parsed = tuple(parse(shape, item, f"{name}.{n}") for n, item in enumerate(items))
        return Page(items=parsed, next_cursor=page.get("next_cursor"))

    return read


def _ignore(_: httpx.Response) -> None:
    return None
