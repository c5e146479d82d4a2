from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin_client import (
    AsyncClient,
    Batch,
    BulkResult,
    Chat,
    Client,
    Http,
    MoyinError,
    Pipeline,
    Render,
)
from tests.unit.clients.python.conftest import AnyClient, Pauses
from tests.unit.clients.python.scripted_gateway import (
    LOST,
    Reply,
    ScriptedGateway,
    json_reply,
    problem_reply,
)

QUEUED = {"id": "j1", "status": "queued"}
CHAT = Chat(request={"model": "auto", "messages": []})


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def describe_methods(client_type: type) -> dict[str, list[tuple[str, Any, Any]]]:
        return {
            name.replace("__a", "__"): [
                (parameter.name, parameter.default, parameter.annotation)
                for parameter in inspect.signature(method).parameters.values()
            ]
            for name, method in vars(client_type).items()
            if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__")
        }

    assert describe_methods(Client) == describe_methods(AsyncClient)
    assert len(describe_methods(Client)) > 15


@pytest.mark.parametrize(
    ("work", "body"),
    [
        (
            CHAT,
            {"kind": "chat", "request": {"model": "auto", "messages": []}, "protocol": "openai"},
        ),
        (
            Render(workflow={"1": {}}, cache=False, pool="fast"),
            {"kind": "render", "workflow": {"1": {}}, "cache": False, "pool": "fast"},
        ),
        (
            Render(template="dawn", inputs={"seed": 0}, batch=Batch(seeds=4)),
            {"kind": "render", "template": "dawn", "inputs": {"seed": 0}, "batch": {"seeds": 4}},
        ),
        (
            Http(path="/reports", method="POST", body={"a": None}),
            {
                "kind": "http",
                "request": {"path": "/reports", "method": "POST", "body": {"a": None}},
            },
        ),
        (
            Pipeline(steps=[CHAT, Render(template="dawn", inputs={"p": "${steps.0.text}"})]),
            {
                "kind": "pipeline",
                "steps": [
                    {"kind": "chat", "request": CHAT.request, "protocol": "openai"},
                    {"kind": "render", "template": "dawn", "inputs": {"p": "${steps.0.text}"}},
                ],
            },
        ),
    ],
)
async def test_work_is_submitted_as_documented(
    client: AnyClient, gateway: ScriptedGateway, work: Any, body: dict[str, Any]
) -> None:
    gateway.script("POST", "/jobs", json_reply(QUEUED, 202))
    job = await client.call(
        "submit", work, priority=2, metadata={"project": "dawn"}, webhook="https://a.example/b",
        deadline=datetime(2026, 12, 1, tzinfo=UTC),
    )  # fmt: skip
    assert (job.id, job.status, job.has_ended) == ("j1", "queued", False)
    [request] = gateway.requests
    assert request.headers["authorization"] == "Bearer key-1"
    assert request.json == body | {
        "priority": 2, "metadata": {"project": "dawn"}, "webhook": "https://a.example/b",
        "deadline": "2026-12-01T00:00:00+00:00",
    }  # fmt: skip


async def test_retries_of_a_submission_have_the_same_key(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    busy_reply = problem_reply(503, "service_unavailable", headers={"retry-after": "7"})
    gateway.script(
        "POST", "/jobs", LOST, busy_reply, json_reply(QUEUED, 202), json_reply(QUEUED, 202)
    )
    await client.call("submit", CHAT)
    await client.call("submit", CHAT)
    keys = [request.headers["idempotency-key"] for request in gateway.requests]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert len({request.body for request in gateway.requests}) == 1
    assert len(pauses.seconds) == 2
    assert 0.25 <= pauses.seconds[0] <= 0.5
    assert pauses.seconds[1] == 7


async def test_a_key_of_the_caller_is_sent(client: AnyClient, gateway: ScriptedGateway) -> None:
    gateway.script("POST", "/jobs", json_reply(QUEUED, 202))
    await client.call("submit", CHAT, idempotency_key="order-4711")
    assert gateway.requests[0].headers["idempotency-key"] == "order-4711"


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422, 500])
async def test_permanent_errors_are_raised_at_once(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses, status: int
) -> None:
    gateway.script(
        "POST", "/jobs",
        problem_reply(status, "some_code", field="steps.0.request", node_errors={"3": "bad"}),
    )  # fmt: skip
    with pytest.raises(MoyinError, match="wrong: some_code") as exc_info:
        await client.call("submit", CHAT)
    error = exc_info.value
    assert (error.status, error.code, error.field) == (status, "some_code", "steps.0.request")
    assert (error.request_id, error.retry_after) == ("req_7", None)
    assert error.details == {"node_errors": {"3": "bad"}}
    assert pauses.seconds == []
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
async def test_a_temporary_error_is_raised_after_the_last_try(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses, status: int
) -> None:
    gateway.script("GET", "/jobs/j1", *[problem_reply(status, "passing")] * 4)
    with pytest.raises(MoyinError) as exc_info:
        await client.call("job", "j1")
    assert (exc_info.value.status, exc_info.value.code) == (status, "passing")
    assert (len(gateway.requests), len(pauses.seconds)) == (4, 3)


async def test_a_gateway_that_is_down_is_tried_again(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    gateway.script("GET", "/jobs/j1", json_reply(QUEUED))
    gateway.stop()
    pauses.on_pause = gateway.start
    assert (await client.call("job", "j1")).id == "j1"
    assert len(pauses.seconds) == 1


async def test_a_lost_connection_is_an_error_without_status(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script("GET", "/jobs/j1", *[LOST] * 4)
    with pytest.raises(MoyinError) as exc_info:
        await client.call("job", "j1")
    assert (exc_info.value.status, exc_info.value.code) == (None, "connection_failed")


async def test_a_job_is_parsed_and_its_unknown_members_are_ignored(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    artifact = {"id": "art_1", "url": "/artifacts/art_1", "name": "a.png", "media_type": "image/png",
                "size": 3, "poster": None}  # fmt: skip
    gateway.script(
        "GET", "/jobs/j1",
        json_reply({
            "id": "j1", "status": "failed", "kind": "render", "mood": "blue", "steps": 2,
            "progress": {"value": 3, "max": 4.5, "step": 1}, "artifacts": [artifact],
            "error": {"code": "render_failed", "message": "no", "details": {"node": "3"}},
            "cancelled_by": None, "cost_usd": 1, "created_at": "2026-11-28T12:00:00Z",
            "metadata": {"a": "b"}, "started_at": None,
            "outputs": [{"step": 0, "text": "hi", "body": {"x": [1]}, "artifacts": [artifact],
                         "backend": None, "cost_usd": 0.5, "cached": False, "gpu_seconds": 2}],
            "children": [{"index": 0, "status": "succeeded", "inputs": {"seed": 1}, "progress": 1,
                          "artifacts": [], "error": None, "cached": True}],
            "submitted": {"steps": [{"kind": "render", "graph": "/jobs/j1/graph?step=0"}],
                          "deadline": None, "webhook": None},
        }),
    )  # fmt: skip
    job = await client.call("job", "j1")
    assert job.has_ended
    assert (job.progress.max, job.cost_usd, job.started_at) == (4.5, 1.0, None)
    assert job.created_at == datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert (job.artifacts[0].name, job.error.code) == ("a.png", "render_failed")
    assert (job.outputs[0].body, job.outputs[0].gpu_seconds) == ({"x": [1]}, 2.0)
    assert (job.children[0].inputs, job.children[0].cached) == ({"seed": 1}, True)
    assert job.submitted.steps[0].graph == "/jobs/j1/graph?step=0"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"id": "j1"}', b'{"id": "j1", "status": 3}',
             b'{"id": "j1", "status": "queued", "artifacts": {}}'],
)  # fmt: skip
async def test_a_response_that_is_not_a_job_is_an_error(
    client: AnyClient, gateway: ScriptedGateway, body: bytes
) -> None:
    gateway.script("GET", "/jobs/j1", json_reply(None))
    gateway.script("GET", "/jobs/j2", Reply(body=body))
    for job_id in ("j1", "j2"):
        with pytest.raises(MoyinError) as exc_info:
            await client.call("job", job_id)
        assert exc_info.value.code == "malformed_response"


async def test_an_error_of_another_server_has_its_status(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script("GET", "/jobs/j1", Reply(status=418, body=b"<h1>teapot</h1>"))
    with pytest.raises(MoyinError, match="418") as exc_info:
        await client.call("job", "j1")
    assert (exc_info.value.status, exc_info.value.code) == (418, "http_error")


async def test_all_pages_of_jobs_are_read(client: AnyClient, gateway: ScriptedGateway) -> None:
    gateway.script(
        "GET", "/jobs",
        json_reply({"jobs": [QUEUED, QUEUED | {"id": "j2"}], "next_cursor": "c1"}),
        json_reply({"jobs": [], "next_cursor": "c2"}),
        json_reply({"jobs": [QUEUED | {"id": "j3"}], "next_cursor": None}),
    )  # fmt: skip
    jobs = await client.collect(
        "jobs", status=["failed", "cancelled"], kind="render", metadata={"project": "aurora"},
        created_after=datetime(2026, 1, 1, tzinfo=UTC), page_size=2,
    )  # fmt: skip
    assert [job.id for job in jobs] == ["j1", "j2", "j3"]
    expected_query = {
        "status": "failed,cancelled", "kind": "render", "metadata.project": "aurora",
        "created_after": "2026-01-01T00:00:00+00:00", "limit": "2",
    }  # fmt: skip
    assert [request.query for request in gateway.requests] == [
        expected_query, expected_query | {"cursor": "c1"}, expected_query | {"cursor": "c2"},
    ]  # fmt: skip


async def test_a_time_without_time_zone_is_refused(client: AnyClient) -> None:
    with pytest.raises(ValueError, match="time zone"):
        await client.collect("jobs", created_before=datetime(2026, 1, 1))


@pytest.mark.parametrize("job_id", ["", ".", "..", "../v1/models", "a/b", "a?b", "%2e%2e"])
async def test_an_id_cannot_lead_to_another_route(
    client: AnyClient, gateway: ScriptedGateway, job_id: str
) -> None:
    with pytest.raises(ValueError, match="not the id of a job or file"):
        await client.call("delete", job_id)
    assert gateway.requests == []


async def test_jobs_are_cancelled_retried_and_deleted(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script("POST", "/jobs/j1/cancel", json_reply(QUEUED, 202))
    gateway.script("POST", "/jobs/j1/retry", json_reply(QUEUED | {"attempts": 2}, 202))
    gateway.script("DELETE", "/jobs/j1", Reply(status=204))
    job = await client.call("cancel", "j1")
    assert (await client.call("retry", job)).attempts == 2
    assert await client.call("delete", job) is None
    assert [request.method for request in gateway.requests] == ["POST", "POST", "DELETE"]


@pytest.mark.parametrize(
    ("method", "code"), [("cancel", "job_finished"), ("retry", "job_not_finished")]
)
async def test_a_repeated_change_that_was_made_already_returns_the_job(
    client: AnyClient, gateway: ScriptedGateway, method: str, code: str
) -> None:
    gateway.script(
        "POST", f"/jobs/j1/{method}", LOST, problem_reply(409, code), problem_reply(409, code)
    )
    gateway.script("GET", "/jobs/j1", json_reply({"id": "j1", "status": "cancelled"}))
    assert (await client.call(method, "j1")).status == "cancelled"
    with pytest.raises(MoyinError) as exc_info:
        await client.call(method, "j1")
    assert exc_info.value.code == code


async def test_a_repeated_deletion_succeeds(client: AnyClient, gateway: ScriptedGateway) -> None:
    missing_reply = problem_reply(404, "job_not_found")
    limited_reply = problem_reply(429, "rate_limit_exceeded", headers={"retry-after": "1"})
    gateway.script("DELETE", "/jobs/j1", LOST, missing_reply, limited_reply, missing_reply)
    await client.call("delete", "j1")
    # A limit does not hide that there was no such job.
    with pytest.raises(MoyinError) as exc_info:
        await client.call("delete", "j1")
    assert exc_info.value.code == "job_not_found"


async def test_many_jobs_are_changed_until_no_cursor_is_left(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script(
        "POST", "/jobs/delete",
        json_reply({"matched": 10_000, "done": 9_000, "skipped": 1_000, "next_cursor": "c1"}),
        json_reply({"matched": 5, "done": 5, "skipped": 0, "next_cursor": None}),
    )  # fmt: skip
    gateway.script("POST", "/jobs/cancel", json_reply({"matched": 3, "done": 0, "skipped": 0}))
    conditions = {
        "status": ["failed"], "metadata": {"project": "aurora"},
        "created_before": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    result = await client.call("delete_jobs", **conditions)
    assert result == BulkResult(matched=10_005, done=9_005, skipped=1_000)
    assert (await client.call("cancel_jobs", dry_run=True, kind="render")).matched == 3
    sent_filter = conditions | {"created_before": "2026-01-01T00:00:00+00:00"}
    assert [request.json for request in gateway.requests] == [
        {"filter": sent_filter, "dry_run": False, "cursor": None},
        {"filter": sent_filter, "dry_run": False, "cursor": "c1"},
        {"filter": {"kind": "render"}, "dry_run": True, "cursor": None},
    ]


async def test_a_graph_is_read(client: AnyClient, gateway: ScriptedGateway) -> None:
    gateway.script("GET", "/jobs/j1/graph", json_reply({"1": {}}), json_reply([]))
    assert await client.call("graph", "j1", step=2) == {"1": {}}
    assert gateway.requests[0].query == {"step": "2"}
    with pytest.raises(MoyinError, match="not a graph"):
        await client.call("graph", "j1")


async def test_usage_is_parsed(client: AnyClient, gateway: ScriptedGateway) -> None:
    total = {
        "calls": 2, "incomplete_calls": 0, "input_tokens": 5, "cached_tokens": 0,
        "output_tokens": 7, "units": {"seconds": 90}, "load_milliseconds": 5, "cost_usd": "0.10",
        "render_cost_usd": "0.04", "dearest_cost_usd": None,
    }  # fmt: skip
    report = {
        "from": "2026-11-01T00:00:00Z", "to": "2026-11-28T00:00:00Z", "group_by": ["day", "model"],
        "total": total, "groups": [total | {"day": "2026-11-02", "model": "m"}],
        "dearest": {"chat": None, "embeddings": None}, "budgets": None,
        "days": [total | {"day": "2026-11-02"}],
    }  # fmt: skip
    gateway.script("GET", "/v1/usage", json_reply(report))
    start = datetime(2026, 11, 1, tzinfo=UTC)
    usage = await client.call(
        "usage", group_by=["day", "model"], daily=True, since=start, backend="b"
    )
    assert (usage.since, usage.total.cost_usd, usage.budgets) == (start, "0.10", None)
    assert (usage.groups[0].day, usage.groups[0].model, usage.groups[0].key) == (
        "2026-11-02", "m", None,
    )  # fmt: skip
    assert [day.day for day in usage.days] == ["2026-11-02"]
    [request] = gateway.requests
    # The scripted gateway keeps the last of repeated parameters.
    assert request.query == {
        "group_by": "model", "daily": "true", "from": "2026-11-01T00:00:00+00:00", "backend": "b",
    }  # fmt: skip


async def test_an_error_in_the_format_of_openai_has_the_same_members(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    error = {"message": "no", "type": "x", "code": "invalid_request", "param": "group_by"}
    gateway.script("GET", "/v1/usage", json_reply({"error": error}, 400))
    with pytest.raises(MoyinError, match=r"^no$") as exc_info:
        await client.call("usage", group_by="day")
    assert (exc_info.value.code, exc_info.value.field, exc_info.value.details) == (
        "invalid_request", "group_by", {},
    )  # fmt: skip
