"""Runs many jobs of many owners on several ComfyUIs while processes are killed every few seconds.

``python -m tests.chaos.soak`` (`make soak`) runs 500 jobs of 20 owners on 4 ComfyUIs, with a kill
-9 every 10 s. `test_soak.py` runs a smaller version on the shared farm.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import sqlalchemy as sa
import yaml
from temporalio.client import Client

from moyin.render.comfyui.install import ComfyUI, find_comfyui
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.schema import artifacts, jobs
from moyin.store.sql import Database
from tests.chaos import victims
from tests.chaos.client import FINAL
from tests.chaos.graphs import sleepy
from tests.stack import RunningStack, farm_env

PNG = b"\x89PNG\r\n\x1a\n"
_RECOVERY_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class SoakPlan:
    """The amounts of work and of kills.

    Attributes:
        every: seconds between kills.
        rounds: number of kills of each kind of process; None to continue until all jobs have ended.
        work: minimum and maximum of the seconds for which a graph sleeps.
        patience: seconds after which a job that has not ended counts as lost.
    """

    jobs: int = 500
    owners: int = 20
    actors: int = 4
    every: float = 10.0
    rounds: int | None = None
    work: tuple[float, float] = (1.0, 4.0)
    seed: int = 1
    patience: float = 20 * 60.0


@dataclass(kw_only=True)
class Report:
    """The results of a run.

    Attributes:
        slept: the seconds that all graphs slept in total.
        refused: the number of calls that failed and were repeated.
        tries: the number of render steps, by how many attempts they needed.
        renders: the number of prompts that the ComfyUIs executed.
    """

    jobs: int = 0
    seconds: float = 0.0
    slept: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    tries: Counter[int] = field(default_factory=Counter)
    renders: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        kill_counts = ", ".join(f"{name} {count}" for name, count in self.kills.items())
        tries_text = ", ".join(
            f"{tries} times {count}" for tries, count in sorted(self.tries.items())
        )
        return (
            f"{self.jobs} jobs ({self.slept:.0f} s of work) in {self.seconds:.0f} s, "
            f"{self.kills.total()} kills ({kill_counts}); {self.refused} calls tried again; "
            f"render steps begun: {tries_text}; renders finished by ComfyUI: {self.renders}"
        )


@asynccontextmanager
async def farm(
    comfyui: ComfyUI, folder: Path, actors: int, **pool_args: Any
) -> AsyncIterator[RunningStack]:
    """Run a stack with several ComfyUIs on one logical card, and delete it at the end.

    Args:
        pool_args: further ``args`` of the render pool.
    """
    env = farm_env(comfyui, folder, **pool_args)
    path = Path(env["MOYIN_SERVE_CONFIG"])
    config = yaml.safe_load(path.read_text())
    [pool] = [app for app in config["applications"] if app["name"] == "render-default"]
    pool["args"] |= {"actors": actors, "gpus": 1 / actors, "cpus": 0.1, "window": 16 * actors}
    path.write_text(yaml.safe_dump(config))
    gateway = RunningStack(folder, env)
    try:
        await asyncio.to_thread(gateway.run, "up")
        yield gateway
    finally:
        await asyncio.to_thread(gateway.run, "down", check=False)
    remaining_processes = gateway.processes()
    assert remaining_processes == [], remaining_processes


async def soak(gateway: RunningStack, plan: SoakPlan) -> Report:
    """Execute the plan and return a report; `Report.problems` lists all that went wrong."""
    report = Report(jobs=plan.jobs)
    keys = await _create_keys(gateway, plan.owners)
    await _wait_for_actors(gateway, plan.actors)
    counts_before, renders_before = _count_processes(gateway), _count_renders(gateway)
    rng = random.Random(plan.seed)
    graphs = [
        sleepy(round(rng.uniform(*plan.work), 2), 0x200000 + plan.seed * 0x10000 + number)
        for number in range(plan.jobs)
    ]
    report.slept = sum(graph["3"]["inputs"]["seconds"] for graph in graphs)
    started_at = time.monotonic()
    kill_task = asyncio.create_task(_kill_processes(gateway, plan, report))
    try:
        async with asyncio.TaskGroup() as group:
            owners = [
                group.create_task(
                    _run_owner(gateway, key, graphs[owner_index :: plan.owners], plan, report)
                )
                for owner_index, key in enumerate(keys)
            ]
    finally:
        kill_task.cancel()
        await asyncio.gather(kill_task, return_exceptions=True)
    report.seconds = time.monotonic() - started_at
    ids = [job_id for owner in owners for job_id in owner.result()]
    await _check_recovery(gateway, counts_before, report)
    await _check_rows(gateway, ids, report)
    await _check_workflows(gateway, ids, report)
    report.renders = _count_renders(gateway) - renders_before
    return report


async def _run_owner(
    gateway: RunningStack, key: str, graphs: list[dict[str, Any]], plan: SoakPlan, report: Report
) -> list[str]:
    """Submit a job for each graph of an owner, wait for all, and fetch the results.

    Returns:
        The ids of the jobs.
    """
    async with _Caller(gateway.url, key, plan.patience, report) as caller:
        ids: list[str] = []
        for graph in graphs:
            body = {"kind": "render", "workflow": graph}
            ids.append((await caller.post("/jobs", body, f"soak-{len(ids)}"))["id"])
        expected_ids = set(ids)
        deadline = time.monotonic() + plan.patience
        while True:
            owner_jobs = (await caller.get("/jobs?limit=200"))["jobs"]
            if all(job["status"] in FINAL for job in owner_jobs):
                break
            if time.monotonic() > deadline:
                open_ids = [job["id"] for job in owner_jobs if job["status"] not in FINAL]
                report.problems.append(f"jobs that never ended: {open_ids}")
                break
            await asyncio.sleep(2)
        if {job["id"] for job in owner_jobs} != expected_ids or len(owner_jobs) != len(ids):
            report.problems.append("an owner's jobs differ from those that it submitted")
        for job in owner_jobs:
            await _check_job(caller, job, report)
    return ids


async def _check_job(caller: _Caller, job: dict[str, Any], report: Report) -> None:
    if job["status"] != "succeeded" or job["attempts"] != 1 or len(job["artifacts"]) != 1:
        summary = {name: job[name] for name in ("id", "status", "error", "attempts", "artifacts")}
        report.problems.append(f"a job without exactly one artifact: {json.dumps(summary)}")
        return
    [artifact] = job["artifacts"]
    if not (await caller.get_bytes(artifact["url"])).startswith(PNG):
        report.problems.append(f"an artifact is not a PNG: {artifact}")


class _Caller:
    """A client with one owner's key; it repeats its calls, all idempotent, until they succeed."""

    def __init__(self, url: str, key: str, patience: float, report: Report) -> None:
        self._patience = patience
        self._session = aiohttp.ClientSession(
            url,
            headers={"authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=30),
        )
        self._report = report

    async def __aenter__(self) -> _Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: Any, idempotency_key: str) -> Any:
        headers = {"idempotency-key": idempotency_key}
        return json.loads(await self._call("POST", path, json=body, headers=headers))

    async def get(self, path: str) -> Any:
        return json.loads(await self.get_bytes(path))

    async def get_bytes(self, path: str) -> bytes:
        return await self._call("GET", path)

    async def _call(self, method: str, path: str, **options: Any) -> bytes:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                async with self._session.request(method, path, **options) as response:
                    response_bytes = await response.read()
                    if response.status < 300:
                        return response_bytes
                    # While processes are killed, the farm may respond with 5xx, but no other error.
                    assert response.status >= 500, (response.status, response_bytes)
            except (aiohttp.ClientError, TimeoutError) as error:
                response_bytes = repr(error).encode()
            assert time.monotonic() < deadline, response_bytes
            self._report.refused += 1
            await asyncio.sleep(0.5)


async def _kill_processes(gateway: RunningStack, plan: SoakPlan, report: Report) -> None:
    rng = random.Random(plan.seed)
    rounds = itertools.count() if plan.rounds is None else range(plan.rounds)
    for name in (name for _ in rounds for name in victims.KILLS):
        await asyncio.sleep(plan.every)
        victim_processes = await asyncio.to_thread(
            victims.list_processes, gateway.data, victims.KILLS[name]
        )
        if not victim_processes:
            continue  # not back yet from its last death
        victim = rng.choice(victim_processes)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
        report.kills[name] += 1


def _count_processes(gateway: RunningStack) -> dict[str, int]:
    return {
        name: len(victims.list_processes(gateway.data, matches))
        for name, matches in victims.KILLS.items()
    }


async def _wait_for_actors(gateway: RunningStack, actors: int) -> None:
    deadline = time.monotonic() + _RECOVERY_SECONDS * 2
    while (
        comfyui_count := (await asyncio.to_thread(_count_processes, gateway))["ComfyUI"]
    ) != actors:
        assert time.monotonic() < deadline, (
            f"only {comfyui_count} of {actors} ComfyUIs run after {2 * _RECOVERY_SECONDS:.0f} s"
        )
        await asyncio.sleep(0.5)


async def _check_recovery(
    gateway: RunningStack, counts_before: dict[str, int], report: Report
) -> None:
    """Wait until as many processes of each kind run as before; report a problem if they do not.

    Args:
        counts_before: the number of processes of each kind before the kills.
    """
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while (current_counts := await asyncio.to_thread(_count_processes, gateway)) != counts_before:
        if time.monotonic() > deadline:
            report.problems.append(
                f"processes: {counts_before} before the kills, {current_counts} after"
            )
            return
        await asyncio.sleep(0.5)


async def _check_rows(gateway: RunningStack, ids: list[str], report: Report) -> None:
    """Check that each job has one result and one picture of its own in the database."""
    database = Database(gateway.settings.sql_url)
    try:
        async with database.reading() as connection:
            job_results = (await connection.execute(sa.select(jobs.c.id, jobs.c.results))).all()
            rows = (
                await connection.execute(sa.select(artifacts.c.job_id, artifacts.c.sha256))
            ).all()
            owned_files = [tuple(row) for row in rows]
    finally:
        await database.close()
    result_counts = {job_id: len(step_results) for job_id, step_results in map(tuple, job_results)}
    file_counts = Counter(job_id for job_id, _ in owned_files)
    for job_id in ids:
        if result_counts.get(job_id) != 1 or file_counts[job_id] != 1:
            report.problems.append(
                f"{job_id}: {result_counts.get(job_id)} results, {file_counts[job_id]} files, not one each"
            )
    picture_digests = {sha256 for job_id, sha256 in owned_files if job_id in set(ids)}
    if len(set(ids)) != report.jobs or len(picture_digests) != report.jobs:
        report.problems.append(
            f"{len(set(ids))} jobs, {len(picture_digests)} different pictures; expected {report.jobs}"
        )


async def _check_workflows(gateway: RunningStack, ids: list[str], report: Report) -> None:
    """Check that each job has one workflow, in which one render step was completed."""
    settings = gateway.settings
    client = await Client.connect(settings.temporal_address, namespace=settings.temporal_namespace)
    for job_id in ids:
        completed_count = try_count = 0
        history = await client.get_workflow_handle(job_id).fetch_history()
        for event in history.events:
            if event.HasField("activity_task_started_event_attributes"):
                try_count = event.activity_task_started_event_attributes.attempt
            completed_count += event.HasField("activity_task_completed_event_attributes")
        report.tries[try_count] += 1
        if completed_count != 1:
            report.problems.append(f"{job_id}: {completed_count} completed render steps, not one")
    workflow_counts = Counter([run.id async for run in client.list_workflows()])
    if any(workflow_counts[job_id] > 1 for job_id in ids):
        report.problems.append("a job had more than one workflow")


def _count_renders(gateway: RunningStack) -> int:
    """Return the number of executed prompts of clients in the ComfyUIs' logs.

    The prompt that each ComfyUI executes when it starts is not counted.
    """
    logs = [
        path.read_text(errors="replace")
        for path in (gateway.data / "comfyui" / "run").glob("*/comfyui.log*")
    ]
    executed_count = sum(log.count("Prompt executed in") for log in logs)
    return executed_count - sum(log.count("To see the GUI go to") for log in logs)


async def _create_keys(gateway: RunningStack, count: int) -> list[str]:
    database = Database(gateway.settings.sql_url)
    try:
        keys = KeyStore(database)
        return [(await keys.create(f"soak-{number}", "soak"))[1] for number in range(count)]
    finally:
        await database.close()


async def _run_plan(plan: SoakPlan) -> int:
    with tempfile.TemporaryDirectory(prefix="moyin-soak-") as folder:
        async with farm(find_comfyui(Settings()), Path(folder), plan.actors) as gateway:
            report = await soak(gateway, plan)
    print(report.sentence)
    print(
        "\n".join(report.problems) or "no job was lost or rendered twice, no process is left over"
    )
    return 1 if report.problems else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=SoakPlan.jobs)
    parser.add_argument("--owners", type=int, default=SoakPlan.owners)
    parser.add_argument("--actors", type=int, default=SoakPlan.actors)
    parser.add_argument("--every", type=float, default=SoakPlan.every, help="seconds between kills")
    parser.add_argument(
        "--work",
        type=float,
        nargs=2,
        default=SoakPlan.work,
        help="shortest and longest render in seconds",
    )
    parser.add_argument("--seed", type=int, default=SoakPlan.seed)
    options = vars(parser.parse_args())
    sys.exit(asyncio.run(_run_plan(SoakPlan(**options | {"work": tuple(options["work"])}))))


if __name__ == "__main__":
    main()
