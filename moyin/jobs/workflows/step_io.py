"""Provides the input, output and heartbeats that the activities of all steps need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic_core import from_json, to_json
from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, Step, apply_batch_patch
from moyin.domain.prompt import PromptRecord
from moyin.domain.references import resolve_references
from moyin.domain.serialization import decode, to_plain
from moyin.errors import StepFailed
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, StepInput
from moyin.store.blobs import BlobStore


async def load_step(blobs: BlobStore, step: StepInput) -> tuple[JobSpec, Step, Any]:
    """Return the job's spec, one of its steps, and that step's payload with references resolved.

    Raises:
        InvalidRequest: a reference names an output that no earlier step has.
        StepFailed: the spec or an earlier output was deleted from the artifact store.
    """
    try:
        spec = decode(JobSpec, await blobs.get(step.spec))
        outputs = [from_json(await blobs.get(sha256)) for sha256 in step.earlier]
    except FileNotFoundError:
        raise StepFailed(
            f"the job's spec, or an output before step {step.index}, was deleted from the artifact "
            "store; submit the job again"
        ) from None
    step_spec = spec.steps[step.index]
    payload = step_spec.payload
    if spec.base is not None:
        payload = apply_batch_patch(spec.base, payload)
    return spec, step_spec, resolve_references(payload, outputs)


async def save_output(
    blobs: BlobStore,
    *,
    text: str | None = None,
    body: Any = None,
    artifacts: Sequence[Artifact] = (),
    record: PromptRecord | None = None,
) -> str:
    """Store the output of a step as a blob, and return the sha256 for `StepResult.output`."""
    references = [f"artifact:{artifact.id}" for artifact in artifacts]
    output = {"text": text, "body": body, "artifacts": references}
    if record is not None:
        output["record"] = to_plain(record)
    return await blobs.put(to_json(output))


class Heartbeat:
    """Sends the heartbeats of an activity; Temporal delivers cancellations in reply to them.

    Attributes:
        seconds: the interval, which is also the longest delay of a cancellation.
        details: the values that the next try of the activity gets as ``heartbeat_details``.
    """

    def __init__(self, seconds: float, details: Sequence[Any] = ()) -> None:
        self.seconds = seconds
        self.details = tuple(details)
        self.is_interval_shortest = asyncio.Event()

    def use_shortest_interval(self) -> None:
        """Send heartbeats at the shortest interval from now on."""
        self.is_interval_shortest.set()

    def send(self) -> None:
        activity.heartbeat(*self.details)


@asynccontextmanager
async def send_heartbeats(
    interval: float = HEARTBEAT_INTERVAL.total_seconds(),
) -> AsyncIterator[Heartbeat]:
    """Send heartbeats of the current activity while the block runs.

    Heartbeats repeat the details of the earlier try until `Heartbeat.details` is set.

    Args:
        interval: the seconds between heartbeats, until `Heartbeat.use_shortest_interval` is called.
    """
    heartbeat = Heartbeat(interval, activity.info().heartbeat_details)
    heartbeat_task = asyncio.create_task(_send_repeatedly(heartbeat))
    try:
        yield heartbeat
    finally:
        heartbeat_task.cancel()
        await asyncio.gather(heartbeat_task, return_exceptions=True)


async def _send_repeatedly(heartbeat: Heartbeat) -> None:
    loop = asyncio.get_running_loop()
    interval = HEARTBEAT_INTERVAL.total_seconds()
    # Wait before the first heartbeat, so that short steps send none: each one is a write for
    # Temporal.
    await asyncio.sleep(interval)
    while True:
        heartbeat.send()
        sent_at = loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(heartbeat.seconds):
                await heartbeat.is_interval_shortest.wait()
        await asyncio.sleep(max(0.0, sent_at + interval - loop.time()))
