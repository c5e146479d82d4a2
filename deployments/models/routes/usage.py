"""Serves recorded calls at ``/v1/requests``, and their total usage at ``GET /v1/usage``."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.domain.identity import OPERATOR, Identity
from moyin.domain.money import format_usd
from moyin.domain.operation import Unit
from moyin.errors import InsufficientScope, InvalidRequest, RequestNotFound, ServiceUnavailable
from moyin.store.sql import now
from moyin.store.usage import UsageLedger
from moyin.store.usage_reports import CallFilter, GroupBy, UsageReports, UsageSum
from moyin.text.protocol.usage import (
    ALL_OWNERS,
    MAX_DAYS,
    MAX_GROUP_PAGE,
    BudgetBody,
    CallBody,
    CallPage,
    CallsQuery,
    DearestBody,
    DearestModel,
    GroupBody,
    UsageBody,
    UsageQuery,
    UsageReport,
    build_call_body,
)
from moyin.text.protocol.usage_pages import cut_page, sort_groups
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.usage_comparison import PricedModel, UsageComparison

_log = logging.getLogger(__name__)
_MAX_GROUPS = 5_000


def new_usage_routes(
    ledger: UsageLedger,
    reports: UsageReports,
    get_fleet: Callable[[], Fleet],
    meter: RequestMeter | None,
) -> APIRouter:
    """Return the routes that show the calls in the ledger and their usage.

    If ``meter`` is None, there are no budgets.
    """
    router = APIRouter(tags=["usage"])

    @router.get(
        "/requests",
        summary="List recorded calls, newest first",
        description="Lists the calls of your tenant, which are recorded a second after they end: one "
        "for each back end that was called, so a request that failed at the first has two. Pages are "
        "stable while calls are added: `next_cursor` continues after the last call of the page.",
    )
    async def list_requests(request: Request, query: Annotated[CallsQuery, Query()]) -> CallPage:
        call_filter = CallFilter(
            owner=_resolve_owner(request, query.owner),
            key_id=query.key,
            backend=query.backend,
            model=query.model,
            requested_model=query.requested_model,
            status=query.status,
            since=query.after,
            until=query.before,
        )
        page, next_cursor = await reports.list_calls(
            call_filter, limit=query.limit, cursor=query.cursor
        )
        return CallPage(
            requests=[build_call_body(entry) for entry in page], next_cursor=next_cursor
        )

    @router.get(
        "/requests/{request_id}", summary="Show tokens and cost of a call by its x-request-id"
    )
    async def show_request(request_id: str, request: Request) -> CallBody:
        entry = await ledger.get(context(request.scope).owner, request_id)
        if entry is None:
            raise RequestNotFound(
                "there is no call with this x-request-id; calls are recorded a second after they end"
            )
        return build_call_body(entry)

    @router.get(
        "/usage",
        summary="Sum calls, tokens and cost",
        description="Sums the calls of your tenant by day, model, back end, tenant, API key or "
        "operation, or by two of these. `dearest_cost_usd` is what the complete calls would have cost on the dearest "
        "model that the tenant may use, at today's prices; the saving of routing is the difference "
        f"to `cost_usd`. `budgets` shows what is spent, reserved and left for your key, user and "
        f"tenant. At most {MAX_DAYS} days and {_MAX_GROUPS:,} groups. With `limit`, groups come in "
        "pages, each of which has the sum of all groups as `total`: `next_cursor` continues.",
        response_model_exclude_unset=True,
    )
    async def show_usage(request: Request, query: Annotated[UsageQuery, Query()]) -> UsageReport:
        owner = _resolve_owner(request, query.owner)
        report = await report_usage(reports, get_fleet(), owner, query)
        report.budgets = await _list_budgets(meter, context(request.scope).caller)
        return report

    return router


async def report_month(reports: UsageReports, fleet: Fleet, owner: str | None) -> str:
    """Return this month's usage by day as JSON, without budgets, which belong to single callers."""
    month_start = now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    query = UsageQuery.model_validate({"from": month_start, "group_by": [GroupBy.DAY]})
    report = await report_usage(reports, fleet, owner, query)
    # The same JSON as that of the route, which FastAPI writes.
    return report.model_dump_json(
        by_alias=True, exclude_unset=True, exclude={"budgets"}, ensure_ascii=True
    )


async def report_usage(
    reports: UsageReports, fleet: Fleet, owner: str | None, query: UsageQuery
) -> UsageReport:
    """Return the usage of a tenant, or of all tenants if ``owner`` is None, without budgets.

    Raises:
        InvalidRequest: the period is too long, or has too many groups.
        Overloaded: too many other reports are waiting.
    """
    since, until = query.resolve_period(now())
    comparison = UsageComparison(fleet, owner)
    call_filter = CallFilter(
        owner=owner,
        key_id=query.key,
        backend=query.backend,
        model=query.model,
        requested_model=query.requested_model,
        since=since,
        until=until,
    )
    groupings = [query.group_by, [GroupBy.DAY]] if query.daily else [query.group_by]
    sums = await reports.sum_by_groupings(call_filter, groupings, comparison.price_classes)
    # Thousands of groups take milliseconds, too long for the event loop.
    return await asyncio.to_thread(_build_report, query, (since, until), sums, comparison)


def _resolve_owner(request: Request, owner: str | None) -> str | None:
    """Return the tenant whose calls are shown, or None for all tenants.

    Raises:
        InsufficientScope: the caller may not see the calls of other tenants.
    """
    caller = context(request.scope).caller
    if owner is None or owner == caller.owner:
        return caller.owner
    if not caller.has_scope(OPERATOR):
        raise InsufficientScope(
            f"owner: the calls of other tenants require the scope {OPERATOR}; leave owner out to get "
            "your own",
            field="owner",
            details={"scope": OPERATOR},
        )
    return None if owner == ALL_OWNERS else owner


async def _list_budgets(meter: RequestMeter | None, caller: Identity) -> list[BudgetBody] | None:
    if meter is None:
        return []
    try:
        states = await meter.budgets.list_states(caller.limits, caller.owner)
    except ServiceUnavailable as error:
        # The sums are shown even without budgets, because they do not need Valkey.
        _log.warning("budgets are missing in a usage report: %s", error.__cause__)
        return None
    return [BudgetBody.model_validate(state.to_details()) for state in states]


def _build_report(
    query: UsageQuery,
    period: tuple[datetime, datetime],
    sums: Sequence[Sequence[UsageSum]],
    comparison: UsageComparison,
) -> UsageReport:
    """Return the report of a period.

    Args:
        sums: the usage of each group of the query, and second, if the query requests days, of each
            day.
        comparison: computes what the calls would have cost with the dearest model.
    """
    since, until = period
    group_sums, *day_sums = sums
    models = comparison.choose_models(group_sums)
    groups = _build_groups(query.group_by, group_sums, comparison, models)
    next_cursor = None
    if query.limit is not None or query.cursor is not None:
        limit = query.limit or MAX_GROUP_PAGE
        groups, next_cursor = cut_page(groups, query.group_by, limit, query.cursor)
    report = UsageReport(
        since=since,
        until=until,
        group_by=query.group_by,
        total=UsageBody.model_validate(_sum_usage(group_sums, comparison, models)),
        groups=groups,
        next_cursor=next_cursor,
        dearest=DearestBody(
            chat=_describe_model(models.get(False)),
            embeddings=_describe_model(models.get(True)),
        ),
        budgets=[],
    )
    for days in day_sums:
        report.days = _build_groups([GroupBy.DAY], days, comparison, models)
    return report


def _build_groups(
    group_by: Sequence[GroupBy],
    sums: Sequence[UsageSum],
    comparison: UsageComparison,
    models: Mapping[bool, PricedModel],
) -> list[GroupBody]:
    sums_by_group = defaultdict[tuple[str | None, ...], list[UsageSum]](list)
    for usage_sum in sums:
        sums_by_group[usage_sum.group].append(usage_sum)
    if len(sums_by_group) > _MAX_GROUPS:
        raise InvalidRequest(
            f"group_by: there are more than {_MAX_GROUPS} groups; shorten the period from `from` to "
            f"`to`, or filter",
            field="group_by",
        )
    names = [name.value for name in group_by]
    groups = [
        GroupBody.model_validate(
            {**dict(zip(names, values, strict=True)), **_sum_usage(group_sums, comparison, models)}
        )
        for values, group_sums in sums_by_group.items()
    ]
    return sort_groups(groups, group_by)


def _sum_usage(
    sums: Iterable[UsageSum], comparison: UsageComparison, models: Mapping[bool, PricedModel]
) -> dict[str, Any]:
    sums = list(sums)
    dearest_pico = comparison.compute_pico_cost(sums, models)
    render_sums = [item for item in sums if item.unit == Unit.GPU_MILLISECONDS]
    return {
        "calls": sum(item.calls for item in sums),
        "incomplete_calls": sum(item.calls for item in sums if not item.is_complete),
        "input_tokens": sum(item.input_tokens for item in sums),
        "cached_tokens": sum(item.cached_tokens for item in sums),
        "output_tokens": sum(item.output_tokens for item in sums),
        "units": dict(_add_units(sums)),
        "load_milliseconds": sum(item.load_milliseconds for item in sums),
        "cost_usd": f"{sum(item.cost_usd for item in sums):f}",
        "render_cost_usd": f"{sum(item.cost_usd for item in render_sums):f}",
        "dearest_cost_usd": None if dearest_pico is None else format_usd(dearest_pico),
    }


def _add_units(sums: Iterable[UsageSum]) -> Counter[str]:
    units = Counter[str]()
    for usage_sum in sums:
        if usage_sum.unit is not None:
            units[usage_sum.unit] += usage_sum.quantity
    return units


def _describe_model(model: PricedModel | None) -> DearestModel | None:
    return None if model is None else DearestModel(model=model.model, backend=model.backend)
