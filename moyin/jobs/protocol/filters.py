"""Parses filters of jobs and artifacts, from query parameters or from a request's body."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from moyin.domain.job import JobStatus
from moyin.errors import InvalidRequest
from moyin.http.validation import UtcDatetime, parse_object, validate
from moyin.jobs.protocol.wire import MetadataKey, MetadataValue, PoolName
from moyin.store.artifacts import ArtifactFilter
from moyin.store.job_filter import JobFilter
from moyin.store.job_words import find_words

MAX_PAGE = 200
_METADATA_PREFIX = "metadata."
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}")
_AFTER = "The earliest time, in RFC 3339 with a time zone."
_BEFORE = "The time before which it was created."
M = TypeVar("M", bound=BaseModel)


def _parse_statuses(value: Any) -> Any:
    """Return the statuses in a list, or in one string such as ``queued,running``.

    A value of another type is returned unchanged, for pydantic to reject.
    """
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list):
        return names
    try:
        return [JobStatus(name) for name in names]
    except ValueError:
        raise ValueError(f"must be one or more of {', '.join(JobStatus)}") from None


def _require_rfc3339(value: Any) -> Any:
    """Return ``value`` if it is a time in RFC 3339, or raise ValueError.

    Pydantic alone would also accept numbers, as Unix seconds.
    """
    if not isinstance(value, str) or not _RFC3339.match(value):
        raise ValueError("must be a time in RFC 3339, such as 2026-01-31T12:00:00Z")
    return value


def _require_word(value: str) -> str:
    if not find_words(value):
        raise ValueError("must have at least one letter or digit")
    return value


_Search = Annotated[str, AfterValidator(_require_word)]
_Time = Annotated[UtcDatetime, BeforeValidator(_require_rfc3339)]
_TemplateName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_Metadata: TypeAlias = dict[MetadataKey, MetadataValue]
_Statuses = Annotated[
    list[JobStatus], BeforeValidator(_parse_statuses), Field(min_length=1, max_length=20)
]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobFilterBody(_Query):
    """Conditions on jobs; a job must meet all of them."""

    status: _Statuses | None = Field(
        None, description="One or more statuses: a list, or names with commas."
    )
    kind: Literal["chat", "render", "http", "pipeline"] | None = None
    pool: PoolName | None = Field(None, description="The render pool of one of the steps.")
    template: _TemplateName | None = Field(
        None, description="The template of one of the steps, or its alias."
    )
    metadata: _Metadata = Field(
        default_factory=dict, max_length=16, description="Members that the metadata contain."
    )
    created_after: _Time | None = Field(None, description=_AFTER)
    created_before: _Time | None = Field(None, description=_BEFORE)
    search: _Search | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Words that the texts of the request and the metadata contain.",
    )

    def to_domain(self, aliases: Mapping[str, str]) -> JobFilter:
        """Return the filter; ``aliases`` maps the aliases of templates to their names."""
        template = None if self.template is None else aliases.get(self.template, self.template)
        return JobFilter(
            statuses=tuple(self.status or ()),
            kind=self.kind,
            pool=self.pool,
            template=template,
            metadata=self.metadata,
            created_after=self.created_after,
            created_before=self.created_before,
            search=self.search,
        )


class _PageQuery(_Query):
    limit: int = Field(50, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(
        None, max_length=256, description="The `next_cursor` of the previous page."
    )


class JobsQuery(JobFilterBody, _PageQuery):
    """The parameters of ``GET /jobs``."""


class ArtifactsQuery(_PageQuery):
    """The parameters of ``GET /artifacts``."""

    job: str | None = Field(None, max_length=64, description="The id of the job that made it.")
    media_type: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/(\*|[a-z0-9][a-z0-9!#$&^_.+-]{0,62})$",
        description="Such as `image/png`, or `image/*` for all pictures.",
    )
    created_after: _Time | None = Field(None, description=_AFTER)
    created_before: _Time | None = Field(None, description=_BEFORE)
    favourite: bool | None = Field(None, description="Only favourites, or only others.")
    template: _TemplateName | None = Field(
        None, description="The template, or its alias, of a step of the job that made it."
    )
    user: str | None = Field(
        None, max_length=64, description="The id of the person who submitted that job."
    )
    metadata: _Metadata = Field(
        default_factory=dict, max_length=16, description="Members that that job's metadata contain."
    )

    def to_domain(self, aliases: Mapping[str, str]) -> ArtifactFilter:
        """Return the filter; ``aliases`` maps the aliases of templates to their names."""
        return ArtifactFilter(
            job_id=self.job,
            media_type=self.media_type,
            created_after=self.created_after,
            created_before=self.created_before,
            favourite=self.favourite,
            template=None if self.template is None else aliases.get(self.template, self.template),
            user_id=self.user,
            metadata=self.metadata,
        )


class BulkRequest(_Query):
    """The body of ``POST /jobs/cancel`` and ``POST /jobs/delete``."""

    filter: JobFilterBody = Field(description="At least one condition.")
    dry_run: bool = Field(False, strict=True, description="Only count the matching jobs.")
    cursor: str | None = Field(
        None, max_length=256, description="The `next_cursor` of the previous response."
    )


def parse_jobs_query(parameters: Iterable[tuple[str, str]]) -> JobsQuery:
    """Parse the query of ``GET /jobs``; the parameter ``metadata.<key>`` may have any key.

    Raises:
        InvalidRequest: a parameter is unknown, repeated or invalid.
    """
    parameters = list(parameters)
    members = _collect_members((name, value) for name, value in parameters if name != "status")
    for name, value in parameters:
        if name == "status":
            members.setdefault("status", []).extend(value.split(","))
    return _validate_query(JobsQuery, members)


def parse_artifacts_query(parameters: Iterable[tuple[str, str]]) -> ArtifactsQuery:
    """Parse the query of ``GET /artifacts``; raises the errors of `parse_jobs_query`."""
    return _validate_query(ArtifactsQuery, _collect_members(parameters))


def _collect_members(parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in parameters:
        if name.startswith(_METADATA_PREFIX):
            metadata = members.setdefault("metadata", {})
            _add_once(metadata, name.removeprefix(_METADATA_PREFIX), value, name)
        elif name == "metadata":
            raise InvalidRequest(
                "metadata must be followed by a key, as in metadata.project=aurora",
                field="metadata",
            )
        else:
            _add_once(members, name, value, name)
    return members


def parse_bulk_request(body: bytes) -> BulkRequest:
    """Parse the body of a request that changes many jobs; raise InvalidRequest or InvalidJson."""
    return validate(BulkRequest, parse_object(body))


def describe_query(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a route whose query parameters are members of ``model``.

    Routes pass it to FastAPI as ``openapi_extra``.
    """
    parameters = []
    for name, schema in model.model_json_schema(ref_template="{model}")["properties"].items():
        # Members whose schema refers to another schema are described in text, because the
        # references would not resolve.
        description = schema.pop("description", "")
        # No parameter is null, because a client omits the parameter instead.
        if "anyOf" in schema:
            schema = schema["anyOf"][0]
        if name == "status":
            schema = {"type": "string"}
            description += f" One of {', '.join(status.value for status in JobStatus)}."
        if name == "metadata":
            name, schema = "metadata.{key}", {"type": "string"}
            description = "The value of a member that the metadata contain; one parameter per key."
        parameters.append(
            {"name": name, "in": "query", "required": False, "schema": schema}
            | ({"description": description.strip()} if description else {})
        )
    return {"parameters": parameters}


def _validate_query(query_model: type[M], members: dict[str, Any]) -> M:
    known_fields = query_model.model_fields
    for name in members:
        if name not in known_fields:
            raise InvalidRequest(
                f"{name[:64]} is not a query parameter of this route; valid parameters: {', '.join(known_fields)}",
                field=name[:64],
            )
    return validate(query_model, members)


def _add_once(members: dict[str, Any], name: str, value: str, parameter: str) -> None:
    if name in members:
        raise InvalidRequest(f"{parameter[:64]} must be given only once", field=parameter[:64])
    members[name] = value
