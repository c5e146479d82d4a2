"""Which of several renders runs, and the places of the others, by every door and by ComfyUI itself."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.chaos.graphs import picture, sleepy
from tests.stack import RunningStack
from tests.waiting import eventually

FINAL = {"succeeded", "failed", "cancelled"}
RENDERS = 6
_colors = itertools.count(0x310000)


@pytest.fixture
async def session(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        # Until a ComfyUI is up.
        first = await _submit(session, picture(next(_colors)))
        await eventually(lambda: _has_ended(session, first), 120)
        yield session


@dataclass
class Story:
    """What a look at jobs and ComfyUIs showed so far.

    Attributes:
        early: jobs that ran although no ComfyUI had them yet, or any more.
        most_places: the most queued jobs whose places were all known at the same time.
        alone: looks in which exactly one of the jobs ran and others waited.
    """

    early: set[str] = field(default_factory=set)
    most_places: int = 0
    alone: int = 0


async def test_only_what_comfyui_has_runs_and_the_others_have_places(
    gateway: RunningStack, session: aiohttp.ClientSession
) -> None:
    made = [await _submit(session, sleepy(2, next(_colors))) for _ in range(RENDERS)]
    story = Story()
    async with asyncio.timeout(180):
        while True:
            if not await _look(gateway, session, set(made), story):
                break
            await asyncio.sleep(0.1)
    assert story.alone, "while one runs the others are queued"
    assert story.most_places >= 2
    for job_id in made:
        async with session.get(f"/jobs/{job_id}") as answer:
            job = await answer.json()
        assert job["status"] == "succeeded"
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
        assert (job["position"], job["queued_for"]) == (None, None)
        kinds = await _event_kinds(session, job_id)
        assert kinds[:2] == ["queued", "running"]
        assert kinds.count("running") == 1
        assert kinds[-2:] == ["step", "succeeded"]


async def _look(
    gateway: RunningStack, session: aiohttp.ClientSession, ours: set[str], story: Story
) -> bool:
    """Compare what the doors and ComfyUI say; return False once all jobs have ended."""
    has = await _comfyui_prompts(gateway)
    first = await _statuses(session, ours)
    async with session.get("/queue") as answer:
        queue_running = {row[1] for row in (await answer.json())["queue_running"]} & ours
    async with session.get("/api/jobs", params={"status": "in_progress"}) as answer:
        in_progress = {job["id"] for job in (await answer.json())["jobs"]} & ours
    second = await _statuses(session, ours)
    has |= await _comfyui_prompts(gateway)

    # ComfyUI no longer has a prompt whose files are being stored. It must not get it afterwards.
    assert not story.early & has, "a job ran before a ComfyUI had it"
    ran = _with_status(first, "running")
    story.early |= ran - has
    # A job that is queued later was not running before, and one that runs throughout always was.
    for running in (queue_running, in_progress):
        assert not running & _with_status(second, "queued")
        assert ran & _with_status(second, "running") <= running
    waiting = [job for job in first.values() if job["status"] == "queued"]
    assert all(job["started_at"] is None and job["queued_for"] >= 0 for job in waiting)
    places = [job["position"] for job in waiting if job["position"] is not None]
    assert len(set(places)) == len(places)
    assert all(place >= 1 for place in places)
    if len(places) == len(waiting):
        story.most_places = max(story.most_places, len(places))
    story.alone += len(ran) == 1 and bool(waiting)
    return any(job["status"] not in FINAL for job in second.values())


async def _comfyui_prompts(gateway: RunningStack) -> set[str]:
    """The ids that the `/queue` of every ComfyUI shows, itself asked."""
    found: set[str] = set()
    for path in gateway.data.rglob("comfyui.sock"):
        # The path of a socket may have 107 characters.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{folder}/{path.name}")
            async with (
                aiohttp.ClientSession("http://comfyui", connector=connector) as client,
                client.get("/queue") as answer,
            ):
                queue = await answer.json()
        except aiohttp.ClientConnectorError:
            continue  # the socket of a process that has ended
        finally:
            os.close(folder)
        found |= {row[1] for row in [*queue["queue_running"], *queue["queue_pending"]]}
    return found


async def _statuses(session: aiohttp.ClientSession, ours: set[str]) -> dict[str, dict[str, Any]]:
    async with session.get("/jobs", params={"kind": "render", "limit": "200"}) as answer:
        listed = {job["id"]: job for job in (await answer.json())["jobs"]}
    return {job_id: listed[job_id] for job_id in ours}


def _with_status(jobs: dict[str, dict[str, Any]], status: str) -> set[str]:
    return {job_id for job_id, job in jobs.items() if job["status"] == status}


async def _submit(session: aiohttp.ClientSession, graph: dict[str, Any]) -> str:
    async with session.post("/jobs", json={"kind": "render", "workflow": graph}) as answer:
        job = await answer.json()
        assert answer.status == 202, job
    return str(job["id"])


async def _has_ended(session: aiohttp.ClientSession, job_id: str) -> bool:
    async with session.get(f"/jobs/{job_id}") as answer:
        return (await answer.json())["status"] in FINAL


async def _event_kinds(session: aiohttp.ClientSession, job_id: str) -> list[str]:
    async with session.get(f"/jobs/{job_id}/events") as answer:
        text = await answer.text()
    lines = [line for line in text.splitlines() if line.startswith("event: ")]
    return [line.removeprefix("event: ") for line in lines]
