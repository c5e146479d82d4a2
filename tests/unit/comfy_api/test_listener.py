from __future__ import annotations

import asyncio
import json
import struct
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic_core import to_json
from sqlalchemy.exc import OperationalError

from moyin.domain.job import Job, JobStatus
from moyin.domain.prompt import PromptRecord
from moyin.errors import ServiceUnavailable
from moyin.store.frames import Frame, FrameKind
from moyin.store.hub import SlowConsumer
from tests.unit.comfy_api.rig import CLIENT, OWNER, Client, Rig, record, rig

__all__ = ["rig"]

_ABOUT = to_json({"node_id": "1", "image_type": "image/png"})
_DETAILED = struct.pack(">II", 4, len(_ABOUT)) + _ABOUT + b"picture"
_PLAIN = struct.pack(">II", 1, 2) + b"picture"


def said(job: Job, kind: str, **data: Any) -> Frame:
    body = to_json({"type": kind, "data": {"prompt_id": job.id, **data}})
    return Frame(kind=FrameKind.TEXT, prompt=job.id, body=body)


def mark(job: Job, kind: FrameKind) -> Frame:
    return Frame(kind=kind, prompt=job.id)


async def hears(client: Client) -> tuple[str, dict[str, Any]]:
    text = await client.hears()
    assert isinstance(text, str)
    message = json.loads(text)
    return message["type"], message["data"]


def status(remaining: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "status", {"status": {"exec_info": {"queue_remaining": remaining}}, **more}


def end(job: Job) -> tuple[str, dict[str, Any]]:
    return "executing", {"node": None, "prompt_id": job.id}


async def test_a_client_is_greeted_and_hears_of_its_prompts_in_order(rig: Rig) -> None:
    job = await rig.job()
    async with rig.client() as client:
        assert await hears(client) == status(1, sid=CLIENT)
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        assert await hears(client) == status(1)
        for kind in ("execution_start", "executed"):
            rig.frames.coming.put_nowait(said(job, kind))
        assert [(await hears(client))[0] for _ in range(2)] == ["execution_start", "executed"]


async def test_the_end_is_told_once_in_comfyuis_words_and_when_the_history_has_it(
    rig: Rig,
) -> None:
    job = await rig.job(begun=True)
    told = {"prompt_id": job.id, "timestamp": 5}
    result = await rig.result(record(messages=(("execution_success", told),)))
    async with rig.client() as client:
        await hears(client)
        # Before the row says so it is no end.
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        await rig.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[result])
        for _ in range(2):
            rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        assert await hears(client) == ("execution_success", told)
        assert await hears(client) == status(0)
        assert await hears(client) == end(job)
        assert await hears(client) == status(0), "what comes after the second mark"


async def test_nothing_is_heard_of_a_prompt_after_its_end_unless_it_is_retried(rig: Rig) -> None:
    job, other = await rig.job(begun=True), await rig.job()
    async with rig.client() as client:
        await hears(client)
        await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        for frame in (
            mark(job, FrameKind.END),
            said(job, "progress"),
            Frame(kind=FrameKind.BINARY, prompt=job.id, body=_PLAIN),
            mark(job, FrameKind.STATUS),
            said(job, "progress"),
            said(other, "progress"),
        ):
            rig.frames.coming.put_nowait(frame)
        assert (await hears(client))[0] == "execution_interrupted"
        assert [await hears(client) for _ in range(2)] == [status(1), end(job)]
        told = [await hears(client) for _ in range(2)]
        assert ("progress", {"prompt_id": other.id}) in told
        assert status(1) in told, "which holds nothing up"

        await rig.jobs.reopen(OWNER, job.id)
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        rig.frames.coming.put_nowait(said(job, "progress"))
        told = [await hears(client) for _ in range(2)]
        assert ("progress", {"prompt_id": job.id}) in told
        assert status(2) in told
        await rig.jobs.finish(job.id, 2, JobStatus.CANCELLED, None)
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        assert (await hears(client))[0] == "execution_interrupted", "the end of the second try"


async def test_counting_the_queue_holds_nothing_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await rig.job(begun=True)
    counting, counted = asyncio.Event(), asyncio.Event()
    count = rig.prompts.open_count

    async def slowly(owner: str) -> int:
        counting.set()
        await counted.wait()
        return await count(owner)

    async with rig.client() as client:
        await hears(client)
        monkeypatch.setattr(rig.prompts, "open_count", slowly)
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        await asyncio.wait_for(counting.wait(), 5)
        for _ in range(2):
            rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        rig.frames.coming.put_nowait(said(job, "execution_start"))
        assert (await hears(client))[0] == "execution_start"
        counted.set()
        assert [await hears(client) for _ in range(2)] == [status(1)] * 2
        assert client.heard_all(), "changes that came while it was counted are told as one"


async def test_a_count_that_an_end_has_overtaken_is_not_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await rig.job(begun=True)
    first, counting, counted = True, asyncio.Event(), asyncio.Event()
    count = rig.prompts.open_count

    async def slowly(owner: str) -> int:
        nonlocal first
        remaining, waits, first = await count(owner), first, False
        if waits:
            counting.set()
            await counted.wait()
        return remaining

    async with rig.client() as client:
        await hears(client)
        monkeypatch.setattr(rig.prompts, "open_count", slowly)
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        await asyncio.wait_for(counting.wait(), 5)
        await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        assert [(await hears(client))[0] for _ in range(3)] == [
            "execution_interrupted",
            "status",
            "executing",
        ]
        counted.set()
        assert await hears(client) == status(0), "not the 1 that was counted before"


async def test_who_asks_how_a_prompt_ended_waits_until_its_client_has_heard_of_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.comfy_api.listener._ON_ITS_WAY", timedelta(seconds=60))
    events = rig.events()
    earlier = await rig.job(begun=True)
    old = await rig.jobs.finish(earlier.id, 1, JobStatus.CANCELLED, None)
    job = await rig.job(begun=True)
    assert old is not None
    async with rig.client(events) as client:
        await hears(client)
        done = await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        assert done is not None
        await asyncio.wait_for(events.heard(old), 5)
        asked = asyncio.create_task(events.heard(done))
        await asyncio.sleep(0.05)
        assert not asked.done()
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        await asyncio.wait_for(asked, 5)
        assert (await hears(client))[0] == "execution_interrupted"
        await asyncio.wait_for(events.heard(done), 5)
    await asyncio.wait_for(events.heard(done), 5)


async def test_nobody_waits_long_for_news_that_is_lost(rig: Rig) -> None:
    events = rig.events()
    job = await rig.job(begun=True)
    async with rig.client(events) as client:
        await hears(client)
        done = await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        assert done is not None
        await asyncio.wait_for(events.heard(done), 5)
        assert client.heard_all()


async def test_an_end_that_the_stream_has_lost_is_told_all_the_same(rig: Rig) -> None:
    job = await rig.job(begun=True)
    async with rig.client(rig.events(tick=0.05)) as client:
        await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        kinds = [(await hears(client))[0]]
        while kinds[-1] != "executing":
            kinds.append((await hears(client))[0])
        assert [kind for kind in kinds if kind != "status"] == [
            "execution_interrupted",
            "executing",
        ]


@pytest.mark.parametrize("error", [OSError("gone"), ServiceUnavailable("S3 is away")])
async def test_an_end_is_told_when_the_store_that_tells_how_it_was_is_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job = await rig.job(begun=True)
    record_of, away = rig.files.record, [error, error]

    async def flaky(asked: Job) -> PromptRecord | None:
        if away:
            raise away.pop()
        return await record_of(asked)

    monkeypatch.setattr(rig.files, "record", flaky)
    # However long it is away: the ticks look back no further than they must.
    monkeypatch.setattr("moyin.comfy_api.listener._MARGIN", timedelta(0))
    async with rig.client(rig.events(tick=0.05)) as client:
        await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        kinds = [(await hears(client))[0]]
        while kinds[-1] != "executing":
            kinds.append((await hears(client))[0])
        assert kinds.count("execution_interrupted") == 1
        assert away == []


async def test_an_end_is_not_taken_for_told_while_the_store_is_still_asked_about_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await rig.job(begun=True)
    record_of, since = rig.files.record, rig.prompts.ended_since
    asked, failing, looks = 0, asyncio.Event(), asyncio.Semaphore(0)

    async def slow(about: Job) -> PromptRecord | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await failing.wait()
            raise ServiceUnavailable("S3 is away")
        return await record_of(about)

    async def looked(channel: str, moment: datetime) -> list[Job]:
        found = await since(channel, moment)
        if asked:
            looks.release()
        return found

    monkeypatch.setattr(rig.files, "record", slow)
    monkeypatch.setattr(rig.prompts, "ended_since", looked)
    monkeypatch.setattr("moyin.comfy_api.listener._MARGIN", timedelta(0))
    async with rig.client(rig.events(tick=0.05)) as client:
        await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        for _ in range(4):
            await asyncio.wait_for(looks.acquire(), 5)
        failing.set()
        kinds = [(await hears(client))[0]]
        async with asyncio.timeout(5):
            while kinds[-1] != "executing":
                kinds.append((await hears(client))[0])
        assert kinds.count("execution_interrupted") == 1


async def test_a_client_stays_while_the_database_is_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await rig.job(begun=True)

    async def away(*_: Any, **__: Any) -> list[Job]:
        raise OperationalError("select", {}, Exception("no connection"))

    async with rig.client() as client:
        await hears(client)
        with monkeypatch.context() as patched:
            patched.setattr(rig.prompts, "get", away)
            rig.frames.coming.put_nowait(mark(job, FrameKind.END))
            rig.frames.coming.put_nowait(said(job, "executed"))
            assert (await hears(client))[0] == "executed"


async def test_the_last_word_is_said_though_nobody_can_count(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await rig.job(begun=True)
    await rig.jobs.finish(job.id, 1, JobStatus.CANCELLED, None)

    async def away(*_: Any) -> int:
        raise OperationalError("select", {}, Exception("no connection"))

    async with rig.client() as client:
        await hears(client)
        monkeypatch.setattr(rig.prompts, "open_count", away)
        rig.frames.coming.put_nowait(mark(job, FrameKind.END))
        assert (await hears(client))[0] == "execution_interrupted"
        assert await hears(client) == end(job)


async def test_a_client_that_is_gone_is_let_go_whoever_finds_out(rig: Rig) -> None:
    told: list[str | bytes] = []

    async def send(text: str | bytes) -> None:
        if told:
            raise SlowConsumer("it takes nothing any more")
        told.append(text)

    listener = rig.events(tick=0.01).listener(OWNER, CLIENT, send)
    with pytest.raises(SlowConsumer):
        await asyncio.wait_for(listener.run(), 5)


async def test_previews_come_as_the_client_reads_them(rig: Rig) -> None:
    job = await rig.job(begun=True)
    shown = Frame(kind=FrameKind.BINARY, prompt=job.id, body=_DETAILED)
    async with rig.client() as client:
        await hears(client)
        rig.frames.coming.put_nowait(shown)
        rig.frames.coming.put_nowait(said(job, "progress"))
        assert (await hears(client))[0] == "progress"
        assert await client.hears() == _PLAIN, "after the progress that it belongs to"
        client.listener.metadata = True
        rig.frames.coming.put_nowait(shown)
        assert await client.hears() == _DETAILED


async def test_pictures_that_are_outputs_come_out_of_the_store(rig: Rig) -> None:
    job = await rig.job(begun=True)
    head, picture = _PLAIN[:8], _PLAIN[8:]
    kept = Frame(kind=FrameKind.BLOB, prompt=job.id, body=head, blob=await rig.blobs.put(picture))
    gone = Frame(kind=FrameKind.BLOB, prompt=job.id, body=head, blob="0" * 64)
    async with rig.client() as client:
        await hears(client)
        for frame in (gone, kept):
            rig.frames.coming.put_nowait(frame)
        assert await client.hears() == _PLAIN


async def test_who_comes_in_the_middle_is_told_what_runs(rig: Rig) -> None:
    job, waiting = await rig.job(begun=True), await rig.job()
    rig.frames.earlier = [
        said(job, "executing", node="1"),
        said(job, "executing", node="2"),
        said(job, "progress_state", nodes={}),
        said(waiting, "executing", node="9"),
    ]
    async with rig.client() as client:
        assert await hears(client) == status(2, sid=CLIENT)
        assert (await hears(client))[0] == "progress_state"
        assert await hears(client) == ("executing", {"prompt_id": job.id, "node": "2"})
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        assert await hears(client) == status(2), "and of nothing else"


async def test_where_a_prompt_is_can_be_told_when_that_was_long_ago(rig: Rig) -> None:
    job, between = await rig.job(begun=True), await rig.job(begun=True)
    nodes = {"1": {"state": "finished"}, "2.0": {"state": "running", "display_node_id": "2"}}
    rig.frames.earlier = [
        said(job, "progress_state", nodes=nodes),
        said(between, "progress_state", nodes={"1": {"state": "finished"}}),
    ]
    async with rig.client() as client:
        await hears(client)
        told = [await hears(client) for _ in range(3)]
        assert [kind for kind, _ in told] == ["progress_state", "executing", "progress_state"]
        assert told[1][1] == {"node": "2.0", "display_node": "2", "prompt_id": job.id}
        rig.frames.coming.put_nowait(mark(job, FrameKind.STATUS))
        assert await hears(client) == status(2), "no node would mean the end"


async def test_a_client_that_does_not_keep_up_is_let_go(rig: Rig) -> None:
    async with rig.client() as client:
        rig.frames.coming.put_nowait(SlowConsumer("too slow"))
        with pytest.raises(SlowConsumer):
            await asyncio.wait_for(client.running, 5)
