"""Tests the order in which a real Temporal lets jobs enter a pool's window."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from deployments.render.worker import set_owner_weights
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.launcher import get_job_priority
from moyin.jobs.workflows.types import HEARTBEAT_TIMEOUT, get_render_queue
from moyin.store.jobs import Launch
from tests.integration.servers import TemporalServer

_QUEUE = "entrance-workflows"
_POOL = "entrance"


@workflow.defn(sandboxed=False)
class EntryWorkflow:
    """A workflow with one activity in the pool's queue, which has the workflow's priority."""

    @workflow.run
    async def run(self, name: str) -> None:
        await workflow.execute_activity(
            "enter",
            name,
            task_queue=get_render_queue(_POOL),
            start_to_close_timeout=HEARTBEAT_TIMEOUT,
        )


class EntryRecorder:
    def __init__(self) -> None:
        self.order: list[str] = []

    @activity.defn
    async def enter(self, name: str) -> None:
        self.order.append(name)


async def test_every_tenant_enters_while_another_floods_the_queue(
    temporal_server: TemporalServer,
) -> None:
    client = await _connect_client(temporal_server)
    submissions = (
        [("flood", 2)] * 40 + [("small", 3)] * 3 + [("urgent", 1)] * 3 + [("patient", 5)] * 2
    )
    entry_order = await _enter_all(client, submissions)
    last_positions = {
        owner: len(entry_order) - entry_order[::-1].index(owner) for owner in set(entry_order)
    }
    assert last_positions["urgent"] <= 10
    assert last_positions["small"] <= 15
    # A strict order would have let these in last of all.
    assert entry_order.index("patient") <= 25


async def test_owner_with_more_weight_enters_more_often(temporal_server: TemporalServer) -> None:
    client = await _connect_client(temporal_server)
    await set_owner_weights(client, _POOL, {"heavy": 4.0})
    entry_order = await _enter_all(client, [("light", 3)] * 20 + [("heavy", 3)] * 20)
    assert entry_order[:20].count("heavy") >= 12


async def _connect_client(server: TemporalServer) -> Client:
    namespace = f"entrance-{uuid.uuid4().hex[:8]}"
    return await TemporalConnection(
        server.address, namespace, retention=timedelta(days=1)
    ).get_client()


async def _enter_all(client: Client, submissions: list[tuple[str, int]]) -> list[str]:
    """Let waiting jobs enter the pool's window, and return their owners in the order of entry.

    Args:
        submissions: owner and priority of each job.
    """
    async with Worker(
        client,
        task_queue=_QUEUE,
        workflows=[EntryWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        handles = [
            await client.start_workflow(
                EntryWorkflow.run,
                owner,
                id=f"enter-{number}",
                task_queue=_QUEUE,
                priority=get_job_priority(_build_launch(owner, priority)),
            )
            for number, (owner, priority) in enumerate(submissions)
        ]
        await _wait_until_scheduled(handles)
        entrance = EntryRecorder()
        async with Worker(
            client,
            task_queue=get_render_queue(_POOL),
            activities=[entrance.enter],
            max_concurrent_activities=1,
        ):
            await asyncio.gather(*(handle.result() for handle in handles))
    assert sorted(entrance.order) == sorted(owner for owner, _ in submissions)
    return entrance.order


async def _wait_until_scheduled(handles: list[WorkflowHandle[Any, Any]]) -> None:
    """Wait until all activities are in their queue."""
    for handle in handles:
        while True:
            workflow_description = await handle.describe()
            if workflow_description.raw_description.pending_activities:
                break
            await asyncio.sleep(0.05)


def _build_launch(owner: str, priority: int) -> Launch:
    return Launch(
        job_id="", owner=owner, attempt=1, spec="", heads=(), done=(), webhook=None,
        deadline=None, priority=priority,
    )  # fmt: skip
