"""A step's way into an activity and its output's way out, both through the artifact store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import from_json, to_json
from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.batch import apply_patch
from moyin.domain.job import JobSpec, Step
from moyin.domain.prompt import PromptRecord
from moyin.domain.references import resolve
from moyin.domain.serialization import decode, to_plain
from moyin.errors import StepFailed
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, StepInput
from moyin.store.blobs import BlobStore

__all__ = ["Pulse", "heartbeating", "load_step", "save_output"]


async def load_step(blobs: BlobStore, step: StepInput) -> tuple[JobSpec, Step, Any]:
    """The job's spec, the step, and the step's payload with its references resolved.

    Raises:
        InvalidRequest: a reference names what an earlier step did not give.
        StepFailed: a stored input is gone.
    """
    try:
        spec = decode(JobSpec, await blobs.get(step.spec))
        outputs = [from_json(await blobs.get(sha256)) for sha256 in step.earlier]
    except FileNotFoundError:
        raise StepFailed("an input of the step is no longer in the artifact store") from None
    wanted = spec.steps[step.index]
    payload = wanted.payload if spec.base is None else apply_patch(spec.base, wanted.payload)
    return spec, wanted, resolve(payload, outputs)


async def save_output(
    blobs: BlobStore,
    *,
    text: str | None = None,
    body: Any = None,
    artifacts: Sequence[Artifact] = (),
    record: PromptRecord | None = None,
) -> str:
    """Store a step's output; returns the sha256 for `StepResult.output`."""
    named = [f"artifact:{artifact.id}" for artifact in artifacts]
    output = {"text": text, "body": body, "artifacts": named}
    if record is not None:
        output["record"] = to_plain(record)
    return await blobs.put(to_json(output))


class Pulse:
    """How often an activity says that it is alive, and so, how soon it hears of a cancellation.

    Attributes:
        details: what the next attempt will find in its `activity.Info.heartbeat_details`.
    """

    def __init__(self, seconds: float, details: Sequence[Any] = ()) -> None:
        self.seconds = seconds
        self.details = tuple(details)
        self.quickened = asyncio.Event()

    def quicken(self) -> None:
        """From now on it matters."""
        self.quickened.set()

    def beat(self) -> None:
        activity.heartbeat(*self.details)


@asynccontextmanager
async def heartbeating(
    every: float = HEARTBEAT_INTERVAL.total_seconds(),
) -> AsyncIterator[Pulse]:
    """Tell Temporal that the current activity is alive for as long as the block runs.

    What earlier attempts have left in the details stays there.

    Args:
        every: seconds, until the pulse is quickened.
    """
    pulse = Pulse(every, activity.info().heartbeat_details)
    beat = asyncio.create_task(_beat(pulse))
    try:
        yield pulse
    finally:
        beat.cancel()
        await asyncio.gather(beat, return_exceptions=True)


async def _beat(pulse: Pulse) -> None:
    loop = asyncio.get_running_loop()
    interval = HEARTBEAT_INTERVAL.total_seconds()
    # Each beat costs Temporal a write: a short step is over before its first.
    await asyncio.sleep(interval)
    while True:
        pulse.beat()
        began = loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pulse.seconds):
                await pulse.quickened.wait()
        await asyncio.sleep(max(0.0, began + interval - loop.time()))
