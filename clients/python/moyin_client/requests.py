"""Defines the jobs that clients submit and the filters of lists, and builds their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, ClassVar, Literal, TypedDict

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Kind = Literal["chat", "render", "http", "pipeline"]
Grouping = Literal["day", "model", "backend", "owner", "key", "operation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A request to a language model; ``request`` is its body in the format of ``protocol``."""

    kind: ClassVar[str] = "chat"
    request: Mapping[str, Any]
    protocol: Literal["openai", "anthropic", "ollama", "responses"] = "openai"


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Variants of one render; exactly one of the members must be set.

    Attributes:
        seeds: the number of variants, whose seeds are consecutive, or a list of the seeds.
        inputs: for each variant, the inputs of the template that differ.
        sweep: a list of values for each input, named as in `inputs.<name>` or
            `workflow.<node>.inputs.<name>`; every combination of values is a variant.
    """

    seeds: int | Sequence[int] | None = None
    inputs: Sequence[Mapping[str, Any]] | None = None
    sweep: Mapping[str, Sequence[str | int | float | bool]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Render:
    """A render: a graph in ComfyUI's API format, or a ``template`` with its ``inputs``.

    A render with a ``batch`` is a job with concurrent children, and cannot be a step.

    Attributes:
        strict: True to refuse the job if ComfyUI finds an output of the graph invalid. Otherwise
            the valid outputs are rendered, and `Job.node_errors` names the others. In a pipeline,
            only `Pipeline.strict` has an effect.
    """

    kind: ClassVar[str] = "render"
    workflow: Mapping[str, Any] | None = None
    template: str | None = None
    inputs: Mapping[str, Any] | None = None
    pool: str | None = None
    cache: bool | None = None
    batch: Batch | None = None
    strict: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Http:
    """A request to a route of the gateway, with the rights of the job's submitter."""

    kind: ClassVar[str] = "http"
    path: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: Mapping[str, str] | None = None
    body: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """Steps that run in order; a later step can use earlier outputs, as in `${steps.0.text}`.

    ``pool`` is the render pool of steps that name none, ``strict`` that of `Render` for all steps.
    """

    kind: ClassVar[str] = "pipeline"
    steps: Sequence[Chat | Render | Http]
    pool: str | None = None
    strict: bool | None = None


Work = Chat | Render | Http | Pipeline


class JobOptions(TypedDict, total=False):
    """The options of a job of any kind."""

    priority: int
    deadline: datetime
    metadata: Mapping[str, str]
    webhook: str


class JobConditions(TypedDict, total=False):
    """Conditions on jobs; a job must meet all of them."""

    status: Status | Sequence[Status]
    kind: Kind
    pool: str
    template: str
    metadata: Mapping[str, str]
    created_after: datetime
    created_before: datetime
    search: str


class JobFilter(JobConditions, total=False):
    """Conditions on the jobs of a list; ``page_size`` is the number of jobs per page, 1 to 200."""

    page_size: int


class ArtifactFilter(TypedDict, total=False):
    """Conditions on files; a file must meet all of them.

    ``job`` is the id of the job that made the file.
    """

    job: str
    media_type: str
    created_after: datetime
    created_before: datetime
    favourite: bool
    template: str
    user: str
    metadata: Mapping[str, str]
    page_size: int


class UsageQuery(TypedDict, total=False):
    """Selects and groups the calls that `usage` sums, from ``since`` to before ``until``."""

    group_by: Grouping | Sequence[Grouping]
    daily: bool
    since: datetime
    until: datetime
    key: str
    model: str
    backend: str
    requested_model: str
    owner: str
    limit: int
    cursor: str


def build_job(work: Work, options: JobOptions) -> dict[str, Any]:
    """Return the JSON body of ``POST /jobs``."""
    body = {**_build_step(work), **options}
    if (deadline := options.get("deadline")) is not None:
        body["deadline"] = format_time(deadline)
    return _drop_missing(body)


def build_query(conditions: JobFilter | ArtifactFilter, cursor: str | None) -> dict[str, str]:
    """Return the query parameters of ``GET /jobs`` or ``GET /artifacts``."""
    query: dict[str, str] = {} if cursor is None else {"cursor": cursor}
    for name, value in conditions.items():
        if value is None:
            continue
        if name == "metadata" and isinstance(value, Mapping):
            query |= {f"metadata.{key}": item for key, item in value.items()}
        elif isinstance(value, datetime):
            query[name] = format_time(value)
        elif isinstance(value, bool):
            query[name] = "true" if value else "false"
        elif isinstance(value, str | int):
            query["limit" if name == "page_size" else name] = str(value)
        elif isinstance(value, Sequence):
            query[name] = ",".join(value)
        else:
            raise TypeError(f"{name} cannot be {type(value).__name__}")
    return query


def build_bulk(conditions: JobConditions, dry_run: bool, cursor: str | None) -> dict[str, Any]:
    """Return the JSON body of ``POST /jobs/cancel`` or ``POST /jobs/delete``."""
    members = {
        name: format_time(value) if isinstance(value, datetime) else value
        for name, value in conditions.items()
    }
    return {"filter": _drop_missing(members), "dry_run": dry_run, "cursor": cursor}


def build_usage_query(query: UsageQuery) -> dict[str, str | list[str]]:
    """Return the query parameters of ``GET /v1/usage``."""
    names = {"since": "from", "until": "to"}
    built: dict[str, str | list[str]] = {}
    for name, value in query.items():
        if isinstance(value, datetime):
            built[names[name]] = format_time(value)
        elif isinstance(value, bool):
            built[name] = str(value).lower()
        elif isinstance(value, str | int):
            built[name] = str(value)
        elif isinstance(value, Sequence):
            built[name] = list(value)
        elif value is not None:
            raise TypeError(f"{name} cannot be {type(value).__name__}")
    return built


def format_time(value: datetime) -> str:
    """Return a time in the format RFC 3339; raise ValueError if it has no time zone."""
    if value.tzinfo is None:
        raise ValueError(f"{value} needs a time zone")
    return value.isoformat()


def _build_step(work: Work) -> dict[str, Any]:
    members = {field.name: getattr(work, field.name) for field in fields(work)}
    if isinstance(work, Http):
        members = {"request": _drop_missing(members)}
    elif isinstance(work, Pipeline):
        members["steps"] = [_drop_missing(_build_step(step)) for step in work.steps]
    elif isinstance(work, Render) and work.batch is not None:
        batch = {field.name: getattr(work.batch, field.name) for field in fields(work.batch)}
        members["batch"] = _drop_missing(batch)
    return {"kind": work.kind, **members}


def _drop_missing(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
