from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from moyin_client import EventToken, FinishedStep, Job, MoyinError, Picture, Preview, Progress
from tests.unit.clients.python.conftest import AnyClient, Pauses
from tests.unit.clients.python.scripted_gateway import (
    LOST,
    Reply,
    ScriptedGateway,
    build_event,
    json_reply,
    problem_reply,
    stream_reply,
)

EVENTS = "/jobs/j1/events"


def build_status_event(name: str, event_id: str | None, **kwargs: Any) -> bytes:
    return build_event(name, {"id": "j1", "status": name, "attempt": 1, **kwargs}, event_id)


RUNNING = build_status_event("running", "2-0")
SUCCEEDED = build_status_event("succeeded", "9-0")
PREVIEW_DATA = {
    "step": 0,
    "node": "KSampler",
    "media_type": "image/jpeg",
    "url": "/jobs/j1/preview?number=5",
}


async def test_events_are_typed_by_their_kind(client: AnyClient, gateway: ScriptedGateway) -> None:
    artifact = {"id": "art_1", "name": "a.png"}
    gateway.script(
        "GET", EVENTS,
        stream_reply(
            b"retry: 2000\n\n" + build_status_event("queued", "1-0"),
            b": still here\n\n",
            build_event("progress", {"value": 3, "max": 20, "step": 0, "node": "KSampler"}, "2-0"),
            build_event("step", {"step": 0, "artifacts": [artifact], "attempt": 1}, "3-0"),
            build_event("novelty", {"x": 1}, "4-0"),
            SUCCEEDED,
        ),
    )  # fmt: skip
    events = await client.collect("events", "j1")
    assert [(item.type, item.id) for item in events] == [
        ("queued", "1-0"), ("progress", "2-0"), ("step", "3-0"), ("novelty", "4-0"),
        ("succeeded", "9-0"),
    ]  # fmt: skip
    assert isinstance(events[0].data, Job)
    assert events[0].raw["attempt"] == 1
    assert events[1].data == Progress(value=3.0, max=20.0, step=0, node="KSampler")
    assert isinstance(events[2].data, FinishedStep)
    assert events[2].data.artifacts[0].name == "a.png"
    assert (events[3].data, events[3].raw) == (None, {"x": 1})
    [request] = gateway.requests
    assert "last-event-id" not in request.headers


@pytest.mark.parametrize("breaks", [True, False], ids=["reset", "early end"])
async def test_a_broken_stream_resumes_after_the_last_whole_event(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses, breaks: bool
) -> None:
    gateway.script(
        "GET", EVENTS,
        stream_reply(build_status_event("queued", "1-0"), RUNNING[:20], breaks=breaks),
        stream_reply(RUNNING, breaks=breaks),
        stream_reply(SUCCEEDED),
    )  # fmt: skip
    events = await client.collect("events", "j1", last_event_id="0-0")
    assert [event.id for event in events] == ["1-0", "2-0", "9-0"]
    assert [request.headers["last-event-id"] for request in gateway.requests] == [
        "0-0",
        "1-0",
        "2-0",
    ]
    assert len(pauses.seconds) == 2


async def test_a_stream_waits_for_a_gateway_that_is_down(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    gateway.script("GET", EVENTS, stream_reply(RUNNING, breaks=True), stream_reply(SUCCEEDED))
    pause_actions = [gateway.stop, lambda: None, gateway.start]
    pauses.on_pause = lambda: pause_actions.pop(0)()
    events = await client.collect("events", "j1")
    assert [event.id for event in events] == ["2-0", "9-0"]
    assert pause_actions == []
    assert [request.headers.get("last-event-id") for request in gateway.requests] == [None, "2-0"]


async def test_a_stream_resumes_after_temporary_errors(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    slow_consumer_event = build_event("error", {"code": "slow_consumer", "message": "too slow"})
    gateway.script(
        "GET", EVENTS,
        problem_reply(503, "service_unavailable", headers={"retry-after": "3"}),
        stream_reply(RUNNING + slow_consumer_event),
        stream_reply(SUCCEEDED),
    )  # fmt: skip
    assert [item.id for item in await client.collect("events", "j1")] == ["2-0", "9-0"]
    assert pauses.seconds[0] == 3


async def test_the_client_pauses_as_long_as_the_gateway_requests(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    gateway.script(
        "GET", EVENTS, stream_reply(b"retry: 2000\n\n" + RUNNING), stream_reply(SUCCEEDED)
    )
    await client.collect("events", "j1")
    assert pauses.seconds == [2.0]


async def test_an_event_without_id_does_not_move_the_cursor(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    last_event = build_status_event("succeeded", None)
    gateway.script(
        "GET", EVENTS, stream_reply(RUNNING, last_event, breaks=True), stream_reply(last_event)
    )
    assert [item.id for item in await client.collect("events", "j1")] == ["2-0", None, None]
    assert gateway.requests[1].headers["last-event-id"] == "2-0"


@pytest.mark.parametrize(
    "reply", [problem_reply(404, "job_not_found"),
              stream_reply(build_event("error", {"code": "job_not_found", "message": "no"}))],
)  # fmt: skip
async def test_permanent_errors_end_the_stream(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses, reply: Reply
) -> None:
    gateway.script("GET", EVENTS, reply)
    with pytest.raises(MoyinError) as exc_info:
        await client.collect("events", "j1")
    assert exc_info.value.code == "job_not_found"
    assert pauses.seconds == []


async def test_only_consecutive_failures_count_as_tries(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    broken_streams = [
        stream_reply(build_status_event("running", f"2-{n}"), breaks=True) for n in range(6)
    ]
    gateway.script("GET", EVENTS, *broken_streams, LOST, LOST, LOST, LOST)
    with pytest.raises(MoyinError) as exc_info:
        await client.collect("events", "j1")
    assert exc_info.value.code == "connection_failed"
    # Four tries in a row; the last stream with an event is the first of them.
    assert len(gateway.requests) == 9


async def test_a_stream_after_the_last_event_is_empty(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    gateway.script("GET", EVENTS, Reply(status=204))
    assert await client.collect("events", "j1", last_event_id="9-0") == []
    assert pauses.seconds == []


async def test_a_stream_goes_on_after_a_retry_of_the_job(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script(
        "GET", EVENTS,
        stream_reply(build_status_event("failed", "3-0"), build_status_event("queued", "4-0"), breaks=True),
        stream_reply(build_status_event("succeeded", None)),
    )  # fmt: skip
    events = await client.collect("events", "j1")
    assert [(event.type, event.id) for event in events] == [
        ("failed", "3-0"), ("queued", "4-0"), ("succeeded", None),
    ]  # fmt: skip
    assert gateway.requests[1].headers["last-event-id"] == "4-0"


async def test_waiting_reports_progress_and_returns_the_job(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script(
        "GET", EVENTS,
        stream_reply(build_event("progress", {"value": 1, "max": 2, "step": 0}, "2-0"), breaks=True),
        stream_reply(
            build_event("step", {"step": 0, "artifacts": [], "value": 1, "max": 2}, "3-0"),
            build_event("step", {"step": 1, "artifacts": []}, "4-0"),
            SUCCEEDED,
        ),
    )  # fmt: skip
    output = {"step": 0, "text": "blue"}
    gateway.script(
        "GET", "/jobs/j1", json_reply({"id": "j1", "status": "succeeded", "outputs": [output]})
    )
    reported_progress: list[Progress] = []
    job = await client.call("wait", "j1", on_progress=reported_progress.append)
    assert job.outputs[0].text == "blue"
    assert reported_progress == [Progress(value=1, max=2), Progress(value=1, max=2)]


async def test_waiting_outlasts_more_failures_than_the_policy_tries(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    failures = [problem_reply(503, "service_unavailable") for _ in range(9)]
    gateway.script(
        "GET", EVENTS, stream_reply(RUNNING, breaks=True), *failures, stream_reply(SUCCEEDED)
    )
    gateway.script("GET", "/jobs/j1", json_reply({"id": "j1", "status": "succeeded"}))
    assert (await client.call("wait", "j1")).status == "succeeded"
    assert gateway.requests[-2].headers["last-event-id"] == "2-0"


async def test_waiting_ends_after_the_longest_outage_and_with_other_errors(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    gateway.script("GET", EVENTS, *(problem_reply(503, "service_unavailable") for _ in range(9)))
    with pytest.raises(MoyinError) as exc_info:
        await client.call("wait", "j1", longest_outage=0.0)
    assert (exc_info.value.status, len(gateway.requests)) == (503, 4)


async def test_waiting_follows_a_job_that_was_retried_meanwhile(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script(
        "GET", EVENTS, stream_reply(build_status_event("failed", "3-0")), stream_reply(SUCCEEDED)
    )
    gateway.script(
        "GET", "/jobs/j1",
        json_reply({"id": "j1", "status": "queued"}), json_reply({"id": "j1", "status": "succeeded"}),
    )  # fmt: skip
    assert (await client.call("wait", "j1")).status == "succeeded"
    assert gateway.requests[2].headers["last-event-id"] == "3-0"


async def test_previews_are_typed_and_do_not_move_the_cursor(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script(
        "GET", EVENTS,
        stream_reply(RUNNING, build_event("preview", PREVIEW_DATA), breaks=True),
        stream_reply(build_event("preview", PREVIEW_DATA), breaks=True),
        stream_reply(SUCCEEDED),
    )  # fmt: skip
    events = await client.collect("events", "j1", previews=True)
    assert [(item.type, item.id) for item in events] == [
        ("running", "2-0"), ("preview", None), ("preview", None), ("succeeded", "9-0"),
    ]  # fmt: skip
    assert events[1].data == Preview(
        step=0, node="KSampler", media_type="image/jpeg", url="/jobs/j1/preview?number=5"
    )
    assert [request.headers.get("last-event-id") for request in gateway.requests] == [
        None,
        "2-0",
        "2-0",
    ]
    assert [request.query for request in gateway.requests] == [{"previews": "true"}] * 3


async def test_a_preview_after_the_last_event_does_not_reopen_the_stream(
    client: AnyClient, gateway: ScriptedGateway, pauses: Pauses
) -> None:
    gateway.script("GET", EVENTS, stream_reply(SUCCEEDED, build_event("preview", PREVIEW_DATA)))
    events = await client.collect("events", "j1", previews=True)
    assert [item.type for item in events] == ["succeeded", "preview"]
    assert (len(gateway.requests), pauses.seconds) == (1, [])


async def test_previews_are_sent_only_on_request(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script("GET", EVENTS, stream_reply(SUCCEEDED))
    await client.collect("events", "j1")
    assert gateway.requests[0].query == {}


async def test_the_newest_preview_is_a_picture_or_none(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    gateway.script(
        "GET", "/jobs/j1/preview",
        problem_reply(404, "preview_not_found"), problem_reply(503, "service_unavailable"),
        Reply(headers={"content-type": "image/jpeg"}, body=b"picture"),
        problem_reply(404, "job_not_found"),
    )  # fmt: skip
    assert await client.call("preview", "j1") is None
    picture = await client.call("preview", "j1")
    assert picture == Picture(content=b"picture", media_type="image/jpeg")
    with pytest.raises(MoyinError) as exc_info:
        await client.call("preview", "j1")
    assert exc_info.value.code == "job_not_found"


async def test_a_token_for_a_page_is_created(client: AnyClient, gateway: ScriptedGateway) -> None:
    token = {"token": "e.y.J", "expires_at": "2026-11-28T12:05:00Z"}
    gateway.script("POST", "/jobs/j1/token", LOST, json_reply(token), json_reply(token))
    assert await client.call("create_token", "j1") == EventToken(
        token="e.y.J", expires_at=datetime(2026, 11, 28, 12, 5, tzinfo=UTC)
    )
    await client.call("create_token", "j1", expires_in=60)
    assert [request.json for request in gateway.requests] == [
        {"expires_in": 300}, {"expires_in": 300}, {"expires_in": 60},
    ]  # fmt: skip
