from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic_core import to_json
from sqlalchemy.exc import OperationalError

from moyin.comfy_api import notifier
from moyin.domain.job import Job, JobStatus
from moyin.domain.prompt import PromptRecord
from moyin.errors import ServiceUnavailable
from moyin.store.frames import Frame, FrameKind
from moyin.store.hub import SlowConsumer, Subscription
from tests.unit.comfy_api.harness import (
    CLIENT,
    OWNER,
    ComfyApiHarness,
    ReceivingClient,
    harness,
    make_record,
)

__all__ = ["harness"]

_ABOUT = to_json({"node_id": "1", "image_type": "image/png"})
_DETAILED = struct.pack(">II", 4, len(_ABOUT)) + _ABOUT + b"picture"
_PLAIN = struct.pack(">II", 1, 2) + b"picture"


def make_text_frame(job: Job, message_type: str, **data: Any) -> Frame:
    body = to_json({"type": message_type, "data": {"prompt_id": job.id, **data}})
    return Frame(kind=FrameKind.TEXT, prompt=job.id, body=body)


def make_empty_frame(job: Job, frame_kind: FrameKind) -> Frame:
    return Frame(kind=frame_kind, prompt=job.id)


async def receive(client: ReceivingClient) -> tuple[str, dict[str, Any]]:
    message_text = await client.receive()
    assert isinstance(message_text, str)
    message = json.loads(message_text)
    return message["type"], message["data"]


def make_status_message(open_count: int, **kwargs: Any) -> tuple[str, dict[str, Any]]:
    return "status", {
        "status": {"exec_info": {"queue_remaining": open_count}},
        **kwargs,
    }


def build_end_message(job: Job) -> tuple[str, dict[str, Any]]:
    return "executing", {"node": None, "prompt_id": job.id}


async def test_a_client_receives_a_status_and_then_its_prompts_messages_in_order(
    harness: ComfyApiHarness,
) -> None:
    job = await harness.create_job(is_running=True)
    async with harness.connect_client() as client:
        assert await receive(client) == make_status_message(1, sid=CLIENT)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        assert await receive(client) == make_status_message(1)
        for message_type in ("execution_start", "executed"):
            harness.frames.next_frames.put_nowait(make_text_frame(job, message_type))
        assert [(await receive(client))[0] for _ in range(2)] == ["execution_start", "executed"]


async def test_messages_and_previews_name_the_id_that_the_client_chose(
    harness: ComfyApiHarness,
) -> None:
    chosen_id = str(uuid.uuid4())
    job = await harness.create_job(is_running=True, chosen_id=chosen_id)
    about = to_json({"prompt_id": job.id})
    preview = struct.pack(">II", 4, len(about)) + about + b"picture"
    async with harness.connect_client() as client:
        client.notifier.supports_preview_metadata = True
        await receive(client)
        harness.frames.next_frames.put_nowait(make_text_frame(job, "executing", node="1"))
        assert await receive(client) == ("executing", {"prompt_id": chosen_id, "node": "1"})
        frame = Frame(kind=FrameKind.BINARY, prompt=job.id, body=preview)
        harness.frames.next_frames.put_nowait(frame)
        assert await client.receive() == preview.replace(job.id.encode(), chosen_id.encode())
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        kind, data = await receive(client)
        assert (kind, data["prompt_id"]) == ("execution_interrupted", chosen_id)


async def test_a_prompts_start_is_sent_when_the_queue_shows_it_as_running(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test ends the wait, however slow it is.
    monkeypatch.setattr(notifier, "_START_WAIT_SECONDS", 60.0)
    job, other_job = await harness.create_job(), await harness.create_job(is_running=True)
    original_get, completed_reads = harness.prompts.get, asyncio.Semaphore(0)

    async def count_read(owner: str, ids: Sequence[str], *, with_hidden: bool = False) -> list[Job]:
        jobs = await original_get(owner, ids, with_hidden=with_hidden)
        completed_reads.release()
        return jobs

    async with harness.connect_client() as client:
        await receive(client)
        harness.frames.next_frames.put_nowait(make_text_frame(other_job, "execution_start"))
        assert (await receive(client))[0] == "execution_start"
        monkeypatch.setattr(harness.prompts, "get", count_read)
        harness.frames.next_frames.put_nowait(make_text_frame(job, "execution_start"))
        async with asyncio.timeout(60):
            for _ in range(3):
                await completed_reads.acquire()
        assert client.is_idle()
        await harness.jobs.start(job.id, 1)
        assert (await receive(client))[0] == "execution_start"


async def test_a_prompts_start_is_sent_after_a_wait_even_if_its_row_is_not_written(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "_START_WAIT_SECONDS", 0.1)
    job = await harness.create_job()
    async with harness.connect_client() as client:
        await receive(client)
        harness.frames.next_frames.put_nowait(make_text_frame(job, "execution_start"))
        assert (await receive(client))[0] == "execution_start"


async def test_frames_before_the_job_runs_are_not_lost(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No frame is lost while the job's row is not yet marked as running.

    A fast sampler sends hundreds of frames in that time.
    """
    subscription: Subscription[Frame] = Subscription("0-0")

    @asynccontextmanager
    async def subscribe(name: str, after: str | None) -> AsyncIterator[Subscription[Frame]]:
        yield subscription

    monkeypatch.setattr(harness.frames, "subscribe", subscribe)
    monkeypatch.setattr(notifier, "_START_WAIT_SECONDS", 60.0)
    job = await harness.create_job()
    async with harness.connect_client() as client:
        await receive(client)
        start_frame = make_text_frame(job, "execution_start")
        assert subscription.offer([replace(start_frame, id="1-0")])
        for number in range(2, 400):
            progress_frame = replace(make_text_frame(job, "progress"), id=f"{number}-0")
            assert subscription.offer([progress_frame]), f"frame {number} is refused"
            # The notifier reads the row between two frames.
            await harness.prompts.count_open(OWNER)
        received_types = [(await receive(client))[0] for _ in range(399)]
        assert received_types == ["execution_start", *["progress"] * 398]


async def test_the_end_is_sent_once_and_not_before_the_history_shows_it(
    harness: ComfyApiHarness,
) -> None:
    job = await harness.create_job(is_running=True)
    success_data = {"prompt_id": job.id, "timestamp": 5}
    step_result = await harness.store_result(
        make_record(messages=(("execution_success", success_data),))
    )
    async with harness.connect_client() as client:
        await receive(client)
        # The end is ignored until the row shows it.
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        await harness.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[step_result])
        for _ in range(2):
            harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        assert await receive(client) == ("execution_success", success_data)
        assert await receive(client) == make_status_message(0)
        assert await receive(client) == build_end_message(job)
        assert await receive(client) == make_status_message(0), "the repeated end is not sent"


async def test_no_messages_follow_the_end_of_a_prompt_unless_it_is_retried(
    harness: ComfyApiHarness,
) -> None:
    job, other_job = await harness.create_job(is_running=True), await harness.create_job()
    async with harness.connect_client() as client:
        await receive(client)
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        for frame in (
            make_empty_frame(job, FrameKind.END),
            make_text_frame(job, "progress"),
            Frame(kind=FrameKind.BINARY, prompt=job.id, body=_PLAIN),
            make_empty_frame(job, FrameKind.STATUS),
            make_text_frame(job, "progress"),
            make_text_frame(other_job, "progress"),
        ):
            harness.frames.next_frames.put_nowait(frame)
        assert (await receive(client))[0] == "execution_interrupted"
        assert [await receive(client) for _ in range(2)] == [
            make_status_message(1),
            build_end_message(job),
        ]
        received_events = [await receive(client) for _ in range(2)]
        assert ("progress", {"prompt_id": other_job.id}) in received_events
        assert make_status_message(1) in received_events, "statuses do not delay messages"

        await harness.jobs.reopen(OWNER, job.id)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        harness.frames.next_frames.put_nowait(make_text_frame(job, "progress"))
        received_events = [await receive(client) for _ in range(2)]
        assert ("progress", {"prompt_id": job.id}) in received_events
        assert make_status_message(2) in received_events
        await harness.jobs.finish(job.id, 2, JobStatus.CANCELLED, None)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        assert (await receive(client))[0] == "execution_interrupted", "the end of the retry"


async def test_counting_the_queue_does_not_delay_messages(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await harness.create_job(is_running=True)
    count_started, count_may_finish = asyncio.Event(), asyncio.Event()
    original_count = harness.prompts.count_open

    async def count_later(owner: str) -> int:
        count_started.set()
        await count_may_finish.wait()
        return await original_count(owner)

    async with harness.connect_client() as client:
        await receive(client)
        monkeypatch.setattr(harness.prompts, "count_open", count_later)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        await asyncio.wait_for(count_started.wait(), 5)
        for _ in range(2):
            harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        harness.frames.next_frames.put_nowait(make_text_frame(job, "execution_start"))
        assert (await receive(client))[0] == "execution_start"
        count_may_finish.set()
        assert [await receive(client) for _ in range(2)] == [make_status_message(1)] * 2
        assert client.is_idle(), "changes during the count are merged"


async def test_an_outdated_count_is_not_sent_after_an_end(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await harness.create_job(is_running=True)
    is_first, count_started, count_may_finish = True, asyncio.Event(), asyncio.Event()
    original_count = harness.prompts.count_open

    async def count_later(owner: str) -> int:
        nonlocal is_first
        remaining_count, must_wait, is_first = await original_count(owner), is_first, False
        if must_wait:
            count_started.set()
            await count_may_finish.wait()
        return remaining_count

    async with harness.connect_client() as client:
        await receive(client)
        monkeypatch.setattr(harness.prompts, "count_open", count_later)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        await asyncio.wait_for(count_started.wait(), 5)
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        assert [(await receive(client))[0] for _ in range(3)] == [
            "execution_interrupted",
            "status",
            "executing",
        ]
        count_may_finish.set()
        assert await receive(client) == make_status_message(0), "not the outdated count 1"


async def test_history_waits_until_the_client_has_been_notified_of_the_end(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.comfy_api.notifier._NOTIFY_WAIT", timedelta(seconds=60))
    notifiers = harness.new_notifiers()
    earlier_job = await harness.create_job(is_running=True)
    cancelled_earlier_job = await harness.jobs.finish(earlier_job.id, 1, JobStatus.CANCELLED, None)
    job = await harness.create_job(is_running=True)
    assert cancelled_earlier_job is not None
    async with harness.connect_client(notifiers) as client:
        await receive(client)
        cancelled_job = await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        assert cancelled_job is not None
        await asyncio.wait_for(notifiers.wait_until_notified(cancelled_earlier_job), 5)
        waiting_task = asyncio.create_task(notifiers.wait_until_notified(cancelled_job))
        await asyncio.sleep(0.05)
        assert not waiting_task.done()
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        await asyncio.wait_for(waiting_task, 5)
        assert (await receive(client))[0] == "execution_interrupted"
        await asyncio.wait_for(notifiers.wait_until_notified(cancelled_job), 5)
    await asyncio.wait_for(notifiers.wait_until_notified(cancelled_job), 5)


async def test_the_wait_for_a_lost_notification_is_short(harness: ComfyApiHarness) -> None:
    notifiers = harness.new_notifiers()
    job = await harness.create_job(is_running=True)
    async with harness.connect_client(notifiers) as client:
        await receive(client)
        cancelled_job = await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        assert cancelled_job is not None
        await asyncio.wait_for(notifiers.wait_until_notified(cancelled_job), 5)
        assert client.is_idle()


async def test_an_end_that_the_stream_lost_is_sent_by_a_tick(harness: ComfyApiHarness) -> None:
    job = await harness.create_job(is_running=True)
    async with harness.connect_client(harness.new_notifiers(tick=0.05)) as client:
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        message_types = [(await receive(client))[0]]
        while message_types[-1] != "executing":
            message_types.append((await receive(client))[0])
        assert [kind for kind in message_types if kind != "status"] == [
            "execution_interrupted",
            "executing",
        ]


async def test_an_end_before_the_connection_is_not_repeated(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_job, job = (
        await harness.create_job(is_running=True),
        await harness.create_job(is_running=True),
    )
    await harness.jobs.finish(ended_job.id, 1, JobStatus.CANCELLED, None)
    list_ended_since, completed_ticks = harness.prompts.list_ended_since, asyncio.Semaphore(0)

    async def count_tick(channel: str, moment: datetime) -> list[Job]:
        jobs = await list_ended_since(channel, moment)
        completed_ticks.release()
        return jobs

    monkeypatch.setattr(harness.prompts, "list_ended_since", count_tick)
    async with harness.connect_client(harness.new_notifiers(tick=0.05)) as client:
        # The first tick looks back to the connection, later ones further if nothing bounds them.
        async with asyncio.timeout(60):
            for _ in range(4):
                await completed_ticks.acquire()
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        message = await receive(client)
        while message != build_end_message(job):
            assert message[1].get("prompt_id") != ended_job.id
            message = await receive(client)


@pytest.mark.parametrize("error", [OSError("gone"), ServiceUnavailable("S3 is away")])
async def test_an_end_is_sent_after_the_artifact_store_is_back(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job = await harness.create_job(is_running=True)
    read_record, errors = harness.files.read_record, [error, error]

    async def read_record_with_errors(job: Job) -> PromptRecord | None:
        if errors:
            raise errors.pop()
        return await read_record(job)

    monkeypatch.setattr(harness.files, "read_record", read_record_with_errors)
    # Ticks look back no further than necessary, however long the store is unavailable.
    monkeypatch.setattr("moyin.comfy_api.notifier._WRITE_DELAY", timedelta(0))
    async with harness.connect_client(harness.new_notifiers(tick=0.05)) as client:
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        message_types = [(await receive(client))[0]]
        while message_types[-1] != "executing":
            message_types.append((await receive(client))[0])
        assert message_types.count("execution_interrupted") == 1
        assert errors == []


async def test_an_end_whose_first_attempt_fails_late_is_sent_again(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await harness.create_job(is_running=True)
    read_record, list_ended_since = harness.files.read_record, harness.prompts.list_ended_since
    read_count, may_fail, completed_checks = 0, asyncio.Event(), asyncio.Semaphore(0)

    async def fail_first(job: Job) -> PromptRecord | None:
        nonlocal read_count
        read_count += 1
        if read_count == 1:
            await may_fail.wait()
            raise ServiceUnavailable("S3 is away")
        return await read_record(job)

    async def count_check(channel: str, moment: datetime) -> list[Job]:
        jobs = await list_ended_since(channel, moment)
        if read_count:
            completed_checks.release()
        return jobs

    monkeypatch.setattr(harness.files, "read_record", fail_first)
    monkeypatch.setattr(harness.prompts, "list_ended_since", count_check)
    monkeypatch.setattr("moyin.comfy_api.notifier._WRITE_DELAY", timedelta(0))
    async with harness.connect_client(harness.new_notifiers(tick=0.05)) as client:
        await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        for _ in range(4):
            await asyncio.wait_for(completed_checks.acquire(), 5)
        may_fail.set()
        message_types = [(await receive(client))[0]]
        async with asyncio.timeout(5):
            while message_types[-1] != "executing":
                message_types.append((await receive(client))[0])
        assert message_types.count("execution_interrupted") == 1


async def test_a_client_stays_connected_while_the_database_is_unavailable(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await harness.create_job(is_running=True)

    async def fail(*_: Any, **__: Any) -> list[Job]:
        raise OperationalError("select", {}, Exception("no connection"))

    async with harness.connect_client() as client:
        await receive(client)
        with monkeypatch.context() as patch:
            patch.setattr(harness.prompts, "get", fail)
            harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
            harness.frames.next_frames.put_nowait(make_text_frame(job, "executed"))
            assert (await receive(client))[0] == "executed"


async def test_the_final_message_is_sent_although_counting_fails(
    harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await harness.create_job(is_running=True)
    await harness.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)

    async def fail(*_: Any) -> int:
        raise OperationalError("select", {}, Exception("no connection"))

    async with harness.connect_client() as client:
        await receive(client)
        monkeypatch.setattr(harness.prompts, "count_open", fail)
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.END))
        assert (await receive(client))[0] == "execution_interrupted"
        assert await receive(client) == build_end_message(job)


async def test_the_notifier_stops_when_any_send_fails(harness: ComfyApiHarness) -> None:
    received_messages: list[str | bytes] = []

    async def send(message: str | bytes) -> None:
        if received_messages:
            raise SlowConsumer("the client reads no more messages")
        received_messages.append(message)

    notifier = harness.new_notifiers(tick=0.01).new_notifier(OWNER, CLIENT, send)
    with pytest.raises(SlowConsumer):
        await asyncio.wait_for(notifier.run(), 5)


async def test_previews_come_in_the_format_that_the_client_understands(
    harness: ComfyApiHarness,
) -> None:
    job = await harness.create_job(is_running=True)
    preview_frame = Frame(kind=FrameKind.BINARY, prompt=job.id, body=_DETAILED)
    async with harness.connect_client() as client:
        await receive(client)
        harness.frames.next_frames.put_nowait(preview_frame)
        harness.frames.next_frames.put_nowait(make_text_frame(job, "progress"))
        assert (await receive(client))[0] == "progress"
        assert await client.receive() == _PLAIN, "after its progress message"
        client.notifier.supports_preview_metadata = True
        harness.frames.next_frames.put_nowait(preview_frame)
        assert await client.receive() == _DETAILED


async def test_output_pictures_are_read_from_the_artifact_store(harness: ComfyApiHarness) -> None:
    job = await harness.create_job(is_running=True)
    header, picture = _PLAIN[:8], _PLAIN[8:]
    stored_blob_frame = Frame(
        kind=FrameKind.BLOB, prompt=job.id, body=header, blob=await harness.blobs.put(picture)
    )
    missing_blob_frame = Frame(kind=FrameKind.BLOB, prompt=job.id, body=header, blob="0" * 64)
    async with harness.connect_client() as client:
        await receive(client)
        for frame in (missing_blob_frame, stored_blob_frame):
            harness.frames.next_frames.put_nowait(frame)
        assert await client.receive() == _PLAIN


async def test_a_client_that_connects_late_receives_the_running_state(
    harness: ComfyApiHarness,
) -> None:
    job, waiting_job = await harness.create_job(is_running=True), await harness.create_job()
    harness.frames.earlier_frames = [
        make_text_frame(job, "executing", node="1"),
        make_text_frame(job, "executing", node="2"),
        make_text_frame(job, "progress_state", nodes={}),
        make_text_frame(waiting_job, "executing", node="9"),
    ]
    async with harness.connect_client() as client:
        assert await receive(client) == make_status_message(2, sid=CLIENT)
        assert (await receive(client))[0] == "progress_state"
        assert await receive(client) == ("executing", {"prompt_id": job.id, "node": "2"})
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        assert await receive(client) == make_status_message(2), "nothing about the waiting prompt"


async def test_the_executing_node_is_derived_from_progress_when_its_start_is_old(
    harness: ComfyApiHarness,
) -> None:
    job, silent_job = (
        await harness.create_job(is_running=True),
        await harness.create_job(is_running=True),
    )
    nodes = {"1": {"state": "finished"}, "2.0": {"state": "running", "display_node_id": "2"}}
    harness.frames.earlier_frames = [
        make_text_frame(job, "progress_state", nodes=nodes),
        make_text_frame(silent_job, "progress_state", nodes={"1": {"state": "finished"}}),
    ]
    async with harness.connect_client() as client:
        await receive(client)
        received_events = [await receive(client) for _ in range(3)]
        assert [kind for kind, _ in received_events] == [
            "progress_state",
            "executing",
            "progress_state",
        ]
        assert received_events[1][1] == {"node": "2.0", "display_node": "2", "prompt_id": job.id}
        harness.frames.next_frames.put_nowait(make_empty_frame(job, FrameKind.STATUS))
        assert await receive(client) == make_status_message(2), (
            "a message without a node means the end"
        )


async def test_a_client_that_does_not_keep_up_ends_the_notifier(harness: ComfyApiHarness) -> None:
    async with harness.connect_client() as client:
        harness.frames.next_frames.put_nowait(SlowConsumer("too slow"))
        with pytest.raises(SlowConsumer):
            await asyncio.wait_for(client.notifier_task, 5)
