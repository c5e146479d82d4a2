"""Compares the places in the queue of fifty renders, as shown by every API and by two ComfyUIs."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.moyin_pb2_grpc import MoyinStub
from moyin.render.comfyui.install import ComfyUI
from tests.chaos.graphs import picture, sleepy
from tests.stack import RecordMeasurement, RunningStack, farm_env
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(1_200)
RENDERS, URGENT, ACTORS = 45, 5, 2
_STAGES = {"queued": 0, "running": 1, "succeeded": 2, "failed": 2, "cancelled": 2}
_QUEUED, _RUNNING, _ENDED = 0, 1, 2
# So far apart that no render moves up to the better class within the test's time limit.
_NORMAL, _URGENT = 5, 1
_INTERVAL_SECONDS = 0.1
_colors = itertools.count(0x310000)


@dataclass
class GatewayApis:
    """Reads one gateway through all its APIs, and follows the events of each job."""

    stack: RunningStack
    http: aiohttp.ClientSession
    grpc: MoyinStub
    metadata: list[tuple[str, str]]
    events: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)

    def get_stage(self, job_id: str) -> int:
        """Return the stage of the job according to its events; 0 (queued) before the first event.

        The stages are 0 (queued), 1 (running) and 2 (ended).
        """
        event_types = [event_type for event_type, _ in self.events[job_id]]
        return max(
            (_STAGES[event_type] for event_type in event_types if event_type in _STAGES),
            default=_QUEUED,
        )

    async def submit_render(self, graph: Mapping[str, Any], priority: int) -> str:
        body = {"kind": "render", "workflow": graph, "priority": priority}
        async with self.http.post("/jobs", json=body) as response:
            job = await response.json()
            assert response.status == 202, job
        return str(job["id"])

    async def cancel_job(self, job_id: str) -> None:
        async with self.http.post(f"/jobs/{job_id}/cancel") as response:
            assert response.status == 202, await response.text()

    async def list_jobs(self, **query: str) -> dict[str, dict[str, Any]]:
        params = {"kind": "render", "limit": "200", **query}
        async with self.http.get("/jobs", params=params) as response:
            return {job["id"]: job for job in (await response.json())["jobs"]}

    async def list_queue_stages(self) -> dict[str, int]:
        """Return the stages (see `get_stage`) of jobs according to `/queue`, by job id."""
        async with self.http.get("/queue") as response:
            queue = await response.json()
        stages = {"queue_running": _RUNNING, "queue_pending": _QUEUED}
        return {row[1]: stage for name, stage in stages.items() for row in queue[name]}

    async def list_prompt_stages(self) -> dict[str, int]:
        """Return the stages (see `get_stage`) of jobs according to ComfyUI's list, by job id."""
        stages = {"pending": _QUEUED, "in_progress": _RUNNING}
        async with self.http.get("/api/jobs", params={"limit": "1000"}) as response:
            listed_jobs = (await response.json())["jobs"]
        return {job["id"]: stages.get(job["status"], _ENDED) for job in listed_jobs}

    async def get_stages_by_grpc(self, job_ids: Iterable[str]) -> dict[str, int]:
        async def fetch_stage(job_id: str) -> tuple[str, int]:
            job = await self.grpc.GetJob(pb.GetJobRequest(id=job_id), metadata=self.metadata)
            return job_id, _STAGES[pb.JobStatus.Name(job.status).rpartition("_")[2].lower()]

        return dict(await asyncio.gather(*(fetch_stage(job_id) for job_id in job_ids)))

    async def follow_by_sse(self, job_id: str) -> None:
        async with self.http.get(f"/jobs/{job_id}/events") as response:
            event_type = ""
            async for line in response.content:
                field_name, _, value = line.decode().rstrip("\n").partition(": ")
                if field_name == "event":
                    event_type = value
                elif field_name == "data":
                    self.events[job_id].append((event_type, json.loads(value)))

    async def follow_by_websocket(self, job_id: str) -> None:
        async with self.http.ws_connect(f"/jobs/{job_id}/ws") as socket:
            async for message in socket:
                event = json.loads(message.data)
                self.events[job_id].append((event["type"], event["data"]))

    async def follow_by_grpc(self, job_id: str) -> None:
        request = pb.WatchJobRequest(id=job_id)
        async for event in self.grpc.WatchJob(request, metadata=self.metadata):
            self.events[job_id].append((event.type, json.loads(event.data_json)))


@asynccontextmanager
async def _open_api(stack: RunningStack) -> AsyncIterator[GatewayApis]:
    headers = {"authorization": f"Bearer {stack.api_key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncExitStack() as resources:
        http = await resources.enter_async_context(
            aiohttp.ClientSession(stack.url, headers=headers, timeout=timeout, connector=connector)
        )
        channel = await resources.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{stack.ports.grpc}")
        )
        metadata = [("application", "gateway"), ("authorization", f"Bearer {stack.api_key}")]
        yield GatewayApis(stack, http, MoyinStub(channel), metadata)


@dataclass
class Observations:
    """The observations from all samples so far.

    Attributes:
        storing_jobs: jobs that were shown as running although no ComfyUI had them, because they had
            been executed and their files were being stored.
        waiting_order: the waiting jobs that had a position in the latest sample, by position.
        positions: the last known position of each job.
        sample_count: the number of samples.
        full_sample_count: the number of samples in which every ComfyUI had a prompt.
        pushback_count: how often a job moved back, because more urgent new jobs were put before it.
        estimated_jobs: jobs for which the API estimated when they would start.
    """

    storing_jobs: set[str] = field(default_factory=set)
    waiting_order: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    sample_count: int = 0
    full_sample_count: int = 0
    pushback_count: int = 0
    estimated_jobs: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def stack(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("two")
    pool_options = {"actors": ACTORS, "gpus": 0.5, "cpus": 0.1, "window": RENDERS + URGENT}
    env = farm_env(comfyui, folder, **pool_options)
    config_path = Path(env["MOYIN_SERVE_CONFIG"])
    config = yaml.safe_load(config_path.read_text())
    # No render needs these, and a model takes long to load.
    config["applications"] = [
        app for app in config["applications"] if app["name"] not in {"accounts", "models"}
    ]
    config_path.write_text(yaml.safe_dump(config))
    with RunningStack(folder, env).running() as stack:
        yield stack


async def test_all_apis_and_comfyui_agree_on_fifty_renders(
    stack: RunningStack, record_measurement: RecordMeasurement
) -> None:
    async with _open_api(stack) as api:
        await _wait_for_comfyuis(api)
        observations = await _render_all(api)
    record_measurement(
        f"{RENDERS + URGENT} renders on {ACTORS} ComfyUIs: {observations.sample_count} samples, "
        f"in {observations.full_sample_count} of "
        f"which all ComfyUIs had a prompt, {len(observations.storing_jobs)} "
        f"renders seen while files were stored"
    )


async def _wait_for_comfyuis(api: GatewayApis) -> None:
    """Wait until both ComfyUIs are up, and a first render has shown how long renders take."""
    first_job = await api.submit_render(picture(next(_colors)), _NORMAL)

    async def are_up() -> bool:
        job = (await api.list_jobs())[first_job]
        assert job["status"] not in {"failed", "cancelled"}, job
        return job["status"] == "succeeded" and len(await _read_comfyuis(api.stack)) == ACTORS

    await eventually(are_up, 300)


async def _render_all(api: GatewayApis) -> Observations:
    follow_methods = (api.follow_by_sse, api.follow_by_websocket, api.follow_by_grpc)
    priorities: dict[str, int] = {}
    follow_tasks: list[asyncio.Task[None]] = []

    async def submit_and_follow(priority: int) -> None:
        job_id = await api.submit_render(
            sleepy(0.3 + 0.1 * (len(priorities) % 4), next(_colors)), priority
        )
        follow_job = follow_methods[len(priorities) % len(follow_methods)]
        priorities[job_id] = priority
        api.events[job_id] = []
        follow_tasks.append(asyncio.create_task(follow_job(job_id)))

    async def sample_while(condition: Callable[[], bool]) -> None:
        while await _take_sample(api, priorities, observations) and condition():
            await _wait_for_tick()

    observations = Observations()
    # While these occupy the ComfyUIs, all others get their places.
    occupying_jobs = [
        await api.submit_render(sleepy(600, next(_colors)), _URGENT) for _ in range(ACTORS)
    ]
    await eventually(lambda: _have_begun(api, set(occupying_jobs)), 120)
    for _ in range(RENDERS):
        await submit_and_follow(_NORMAL)
    await sample_while(lambda: len(observations.waiting_order) < RENDERS)
    for _ in range(URGENT):
        await submit_and_follow(_URGENT)
    await sample_while(lambda: len(observations.waiting_order) < RENDERS + URGENT)
    for job_id in occupying_jobs:
        await api.cancel_job(job_id)
    await sample_while(lambda: True)
    await asyncio.gather(*follow_tasks)

    jobs = await api.list_jobs()
    for job_id in priorities:
        job, events = jobs[job_id], api.events[job_id]
        assert job["status"] == "succeeded", job
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
        assert (job["position"], job["queued_for"], job["eta"]) == (None, None, None)
        event_types = [event_type for event_type, _ in events if event_type != "progress"]
        assert event_types == ["queued", "running", "step", "succeeded"]
        [running_data] = [data for event_type, data in events if event_type == "running"]
        assert running_data["started_at"] == job["started_at"]
    assert observations.full_sample_count, "both ComfyUIs had a prompt at the same time"
    assert observations.pushback_count, "urgent renders overtook others"
    assert observations.estimated_jobs, "the first render was measured"
    return observations


async def _wait_for_tick() -> None:
    """Wait until the next multiple of the sampling interval, a tenth of a second."""
    await asyncio.sleep(_INTERVAL_SECONDS - time.monotonic() % _INTERVAL_SECONDS)


async def _take_sample(
    api: GatewayApis, priorities: Mapping[str, int], observations: Observations
) -> bool:
    """Compare all APIs with the ComfyUIs once; return False if all jobs have ended.

    The ComfyUIs and the jobs' rows are read before and after everything else. A job that changes in
    between may be shown in its old or its new state.

    Args:
        priorities: the priority of each job, by its id.
    """
    job_ids = priorities.keys()
    prompts_by_comfyui = await _read_comfyuis(api.stack)
    # A ComfyUI that has a prompt says so to the pool, which writes the row a moment later.
    held_jobs = set().union(*prompts_by_comfyui.values()) & job_ids
    await eventually(lambda: _have_begun(api, held_jobs), 120)
    jobs_before = await api.list_jobs()
    stages = {job_id: _STAGES[jobs_before[job_id]["status"]] for job_id in job_ids}
    sampled_ids = [job_id for job_id, stage in stages.items() if stage is _RUNNING][:4]
    sampled_ids += [job_id for job_id, stage in stages.items() if stage is _QUEUED][:2]
    running_page, queue_stages, prompt_stages, stages_by_grpc = await asyncio.gather(
        api.list_jobs(status="running"),
        api.list_queue_stages(),
        api.list_prompt_stages(),
        api.get_stages_by_grpc(sampled_ids),
    )
    # Events are published after the row is written, and a stream must not miss any.
    await eventually(
        lambda: all(api.get_stage(job_id) >= stage for job_id, stage in stages.items()), 120
    )
    stages_by_events = {job_id: api.get_stage(job_id) for job_id in job_ids}
    jobs_after = await api.list_jobs()
    later_stages = {job_id: _STAGES[jobs_after[job_id]["status"]] for job_id in job_ids}
    held_jobs |= set().union(*(await _read_comfyuis(api.stack)).values()) & job_ids

    stages_by_filter = {job_id: _RUNNING if job_id in running_page else None for job_id in job_ids}
    for job_id in job_ids:
        possible_stages = range(stages[job_id], later_stages[job_id] + 1)
        for source, stage in (
            ("queue", queue_stages.get(job_id, _ENDED)),
            ("api/jobs", prompt_stages[job_id]),
            ("grpc", stages_by_grpc.get(job_id, stages[job_id])),
            ("events", stages_by_events[job_id]),
        ):
            assert stage in possible_stages, (source, job_id, stage, possible_stages)
        if stages_by_filter[job_id] is None:
            assert list(possible_stages) != [_RUNNING], job_id
        else:
            assert _RUNNING in possible_stages, job_id
    running_jobs = {job_id for job_id, stage in stages.items() if stage is _RUNNING}
    # ComfyUI has executed a prompt that it no longer has, and must not get it again.
    assert not observations.storing_jobs & held_jobs, "a job ran before a ComfyUI had it"
    observations.storing_jobs |= running_jobs - held_jobs
    assert all(len(prompt_ids) <= 1 for prompt_ids in prompts_by_comfyui.values())
    observations.full_sample_count += (
        sum(bool(set(prompt_ids) & job_ids) for prompt_ids in prompts_by_comfyui.values()) == ACTORS
    )
    observations.sample_count += 1
    _check_places({job_id: jobs_before[job_id] for job_id in job_ids}, priorities, observations)
    return any(stage is not _ENDED for stage in later_stages.values())


async def _have_begun(api: GatewayApis, job_ids: set[str]) -> bool:
    jobs = await api.list_jobs()
    return all(jobs[job_id]["status"] != "queued" for job_id in job_ids)


def _check_places(
    jobs: Mapping[str, Mapping[str, Any]], priorities: Mapping[str, int], observations: Observations
) -> None:
    """Check the positions of all waiting jobs against those of the previous sample.

    They must be ordered by priority. Jobs of one priority never overtake each other. A job moves
    back only because of new jobs before it.
    """
    waiting_jobs = {job_id: job for job_id, job in jobs.items() if job["status"] == "queued"}
    assert all(
        job["started_at"] is None and job["queued_for"] >= 0 for job in waiting_jobs.values()
    )
    positions = {
        j: job["position"] for j, job in waiting_jobs.items() if job["position"] is not None
    }
    assert len(set(positions.values())) == len(positions)
    assert all(position >= 1 for position in positions.values())
    ordered_jobs = sorted(positions, key=lambda job_id: positions[job_id])
    classes = [priorities[job_id] for job_id in ordered_jobs]
    assert classes == sorted(classes), "renders of a better class begin first"
    known_jobs = [job_id for job_id in observations.waiting_order if job_id in positions]
    new_jobs = {job_id for job_id in ordered_jobs if job_id not in observations.positions}
    assert [job_id for job_id in ordered_jobs if job_id not in new_jobs] == known_jobs, (
        "no render overtakes another"
    )
    for job_id in known_jobs:
        lost_places = positions[job_id] - observations.positions[job_id]
        jobs_ahead = ordered_jobs[: ordered_jobs.index(job_id)]
        assert lost_places <= len(new_jobs.intersection(jobs_ahead)), (
            "only new renders push others back"
        )
        observations.pushback_count += lost_places > 0
    for job_id, job in waiting_jobs.items():
        starts_in = None if job["eta"] is None else job["eta"]["starts_in"]
        if starts_in is not None:
            assert 0 <= starts_in["p50"] <= starts_in["p90"]
            observations.estimated_jobs.add(job_id)
    if positions:
        observations.waiting_order, observations.positions = (
            ordered_jobs,
            {**observations.positions, **positions},
        )


async def _read_comfyuis(stack: RunningStack) -> dict[str, list[str]]:
    """Return the ids that the `/queue` of each ComfyUI shows, by the path of its socket."""
    ids_by_socket: dict[str, list[str]] = {}
    for path in stack.data.glob("comfyui/run/*/comfyui.sock"):
        # The path of a socket may have 107 characters.
        folder_fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{folder_fd}/{path.name}")
            async with (
                aiohttp.ClientSession("http://comfyui", connector=connector) as client,
                client.get("/queue") as response,
            ):
                queue = await response.json()
        except aiohttp.ClientConnectorError:
            continue  # the socket of a process that has ended
        finally:
            os.close(folder_fd)
        ids_by_socket[str(path)] = [
            row[1] for row in [*queue["queue_running"], *queue["queue_pending"]]
        ]
    return ids_by_socket
