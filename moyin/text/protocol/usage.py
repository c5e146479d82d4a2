"""Defines the query parameters and bodies of the routes for recorded calls and their usage."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from moyin.domain.operation import RENDER, Operation, Unit
from moyin.errors import InvalidRequest
from moyin.http.validation import UtcDatetime
from moyin.store.usage import CallStatus, UsageEntry
from moyin.store.usage_reports import GroupBy

# Value of the parameter `owner` that means all tenants.
ALL_OWNERS = "*"
MAX_PAGE = 200
MAX_GROUP_PAGE = 500
MAX_DAYS = 400
_DEFAULT_DAYS = 30
_FIRST_TIME = datetime(1970, 1, 2, tzinfo=UTC)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _complete_date(value: Any) -> Any:
    """Add midnight in UTC to a date without a time; return any other value unchanged."""
    return f"{value}T00:00:00Z" if isinstance(value, str) and _DATE.fullmatch(value) else value


_Time = Annotated[UtcDatetime, BeforeValidator(_complete_date)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class _FilterQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    owner: _Name | None = Field(
        None,
        description="The tenant; by default your own. Only operators see other tenants, and all of "
        "them with `*`.",
    )
    key: _Name | None = Field(None, description="The id of the API key that made the calls.")
    model: _Name | None = Field(None, description="The model that answered.")
    backend: _Name | None = Field(
        None, description="The back end; `cache` for answers from the cache."
    )
    requested_model: _Name | None = Field(
        None, description="The model or alias that the request named.", examples=["auto"]
    )


class CallsQuery(_FilterQuery):
    """The parameters of ``GET /v1/requests``."""

    status: CallStatus | None = Field(
        None,
        description="`complete`; `cancelled` (by the client, or as the slower call of a hedge); "
        "`failed`; `incomplete` (of versions that did not record why).",
    )
    after: _Time | None = Field(
        None, description="The earliest time, or date in UTC.", examples=["2026-11-01"]
    )
    before: _Time | None = Field(
        None, description="The time, or date in UTC, before which the calls ended."
    )
    limit: int = Field(50, ge=1, le=MAX_PAGE, description="The most calls on a page.")
    cursor: str | None = Field(
        None, max_length=256, description="The `next_cursor` of the previous page."
    )


class UsageQuery(_FilterQuery):
    """The parameters of ``GET /v1/usage``."""

    group_by: list[GroupBy] = Field(
        default_factory=lambda: [GroupBy.DAY],
        max_length=2,
        description="One or two properties by which the calls are summed; repeat the parameter for "
        "the second.",
    )
    daily: bool = Field(
        False,
        description="Whether the report has the sums by day, too, in `days`; that takes less time "
        "than a second report.",
    )
    since: _Time | None = Field(
        None,
        alias="from",
        description="The earliest time, or date in UTC; by default 30 days ago, including today.",
        examples=["2026-11-01"],
    )
    until: _Time | None = Field(
        None,
        alias="to",
        description=f"The time, or date in UTC, before which the calls ended; by default now. At "
        f"most {MAX_DAYS} days after `from`.",
        examples=["2026-12-01"],
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=MAX_GROUP_PAGE,
        description=f"The most groups on a page; left out: all, with `cursor` {MAX_GROUP_PAGE}.",
    )
    cursor: str | None = Field(
        None, max_length=4096, description="The `next_cursor` of the previous page."
    )

    @field_validator("group_by")
    @classmethod
    def _require_distinct(cls, group_by: list[GroupBy]) -> list[GroupBy]:
        if len(set(group_by)) < len(group_by):
            raise ValueError("must not name a property twice")
        return group_by

    def resolve_period(self, now: datetime) -> tuple[datetime, datetime]:
        """Return the start and the end of the requested period.

        Raises:
            InvalidRequest: the period ends before it starts, or is too long.
        """
        end = now if self.until is None else self.until
        if end < _FIRST_TIME:
            raise InvalidRequest("to: must be a time after 1970", field="to")
        start = self.since
        if start is None:
            # The period includes the whole last day if a part of it is requested.
            last_day = (end - timedelta(microseconds=1)).replace(
                hour=0, minute=0, second=0, microsecond=0
            )
            start = last_day - timedelta(days=_DEFAULT_DAYS - 1)
        if start >= end or end - start > timedelta(days=MAX_DAYS):
            raise InvalidRequest(
                f"from: must be earlier than `to`, by at most {MAX_DAYS} days", field="from"
            )
        return start, end


class CallBody(BaseModel):
    """A recorded call to a back end; a request with several attempts has several calls."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "request_id": "9f1c0f6d3c4b4f0c8f1f6c1f0a2b3c4d",
                "owner": "studio",
                "key": "key_4f0c8f1f6c1f",
                "requested_model": "auto",
                "backend": "claude",
                "model": "claude-haiku-5-5",
                "status": "complete",
                "complete": True,
                "error": None,
                "input_tokens": 812,
                "cached_tokens": 512,
                "output_tokens": 96,
                "operation": None,
                "unit": None,
                "quantity": None,
                "load_milliseconds": None,
                "cost_usd": "0.0008312",
                "created_at": "2026-11-28T09:30:00.250000Z",
            }
        }
    )

    request_id: str = Field(description="The `x-request-id` of the request.")
    owner: str
    key: str | None = Field(description="The id of the API key; null if it is unknown.")
    requested_model: str | None
    backend: str
    model: str
    status: CallStatus
    complete: bool
    error: str | None = Field(description="The code of the error that ended the call early.")
    input_tokens: int = Field(description="All tokens of the prompt.")
    cached_tokens: int = Field(description="The part of them that a prompt cache served.")
    output_tokens: int
    operation: Operation | Literal["render"] | None = Field(
        description="The kind of the call; null for chats and embeddings. `render` is a run of a "
        "job's graph, whose `request_id` is the job's id."
    )
    unit: Unit | None = Field(description="What such calls are counted by, besides tokens.")
    quantity: int | None = Field(description="The number of units.")
    load_milliseconds: int | None = Field(
        description="For renders, the part of the `quantity` in which nodes that load model files were "
        "executed."
    )
    cost_usd: str
    created_at: datetime | None


class CallPage(BaseModel):
    """A page of calls, newest first; `next_cursor` is null on the last page."""

    requests: list[CallBody]
    next_cursor: str | None


class UsageBody(BaseModel):
    """The summed usage of several calls."""

    calls: int
    incomplete_calls: int = Field(description="The calls that failed, or were ended early.")
    input_tokens: int = Field(description="All tokens of the prompts.")
    cached_tokens: int = Field(description="The part of them that a prompt cache served.")
    output_tokens: int
    units: dict[Unit, int] = Field(
        description="What calls besides chats and embeddings used, such as seconds of audio.",
        examples=[{"seconds": 90}],
    )
    load_milliseconds: int = Field(
        description="The part of the `gpu_milliseconds` in which nodes that load model files were "
        "executed."
    )
    cost_usd: str
    render_cost_usd: str = Field(description="The part of `cost_usd` that renders cost.")
    dearest_cost_usd: str | None = Field(
        description="What the complete calls would have cost on the dearest model that the tenant "
        "may use, at the prices of today; null if no model has a price."
    )


class GroupBody(UsageBody):
    """The usage of one group of calls, with the values of the `group_by` properties."""

    day: str | None = Field(None, description="The day in UTC.", examples=["2026-11-28"])
    model: str | None = None
    backend: str | None = None
    owner: str | None = None
    key: str | None = None
    operation: str | None = None
    user: str | None = Field(
        None,
        description="The user who owns the key or was signed in; null for keys of the tenant, and "
        "for sessions that have been deleted since.",
    )
    template: str | None = Field(
        None, description="The first template of the job; null for calls that are no renders."
    )


class DearestModel(BaseModel):
    """The most expensive model, with which `dearest_cost_usd` is computed."""

    model: str
    backend: str


class DearestBody(BaseModel):
    """The most expensive chat and embedding models; null if no model has a price."""

    chat: DearestModel | None
    embeddings: DearestModel | None


class BudgetBody(BaseModel):
    """A budget of the caller's key, user or tenant in its current period."""

    limit: str = Field(description="`usd_per_day` or `usd_per_month`.", examples=["usd_per_day"])
    of: str = Field(description="`key`, `user` or `owner`, which is the tenant.")
    limit_usd: str
    spent_usd: str
    reserved_usd: str = Field(
        description="The maximum cost of calls that are running, and the estimated cost of the renders of jobs "
        "that have not ended."
    )
    left_usd: str
    resets_at: datetime


class UsageReport(BaseModel):
    """The body of ``GET /v1/usage``: the usage of a period, by groups."""

    since: datetime = Field(serialization_alias="from")
    until: datetime = Field(serialization_alias="to")
    group_by: list[GroupBy]
    total: UsageBody
    groups: list[GroupBody] = Field(description="By day, then by cost, the highest first.")
    next_cursor: str | None = Field(
        None,
        description="Continues after the last group; null on the last page, and without `limit`.",
    )
    days: list[GroupBody] | None = Field(None, description="With `daily`: the usage by day.")
    dearest: DearestBody
    budgets: list[BudgetBody] | None = Field(
        description="The budgets that apply to the caller, whatever the filters are; null while "
        "they cannot be read."
    )


def build_call_body(entry: UsageEntry) -> CallBody:
    """Return the body that describes a ledger entry."""
    return CallBody(
        request_id=entry.request_id,
        owner=entry.owner,
        key=entry.key_id,
        requested_model=entry.requested_model,
        backend=entry.backend,
        model=entry.model,
        status=entry.status,
        complete=entry.complete,
        error=entry.error,
        input_tokens=entry.input_tokens,
        cached_tokens=entry.cached_tokens,
        output_tokens=entry.output_tokens,
        operation=_parse_operation(entry.operation),
        unit=None if entry.unit is None else Unit(entry.unit),
        quantity=entry.quantity,
        load_milliseconds=entry.load_milliseconds,
        cost_usd=f"{entry.cost_usd:f}",
        created_at=entry.created_at,
    )


def _parse_operation(operation: str | None) -> Operation | Literal["render"] | None:
    if operation is None:
        return None
    return RENDER if operation == RENDER else Operation(operation)
