from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.domain.serialization import encode
from moyin.errors import InvalidRequest, StepFailed
from moyin.jobs.workflows import steps as module
from moyin.jobs.workflows.steps import heartbeating, load_step, save_output
from moyin.jobs.workflows.types import StepInput
from moyin.store.blobs import BlobStore

SPEC = JobSpec(
    kind="pipeline",
    steps=(
        Step(kind=StepKind.CHAT, payload={"messages": []}),
        Step(
            kind=StepKind.RENDER, payload={"1": {"inputs": {"t": "${steps.0.text}"}}}, pool="fast"
        ),
    ),
)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


def asked(spec: str, *earlier: str) -> StepInput:
    return StepInput(job_id="j", owner="ann", index=1, spec=spec, earlier=earlier)


async def test_a_step_gets_the_outputs_before_it(blobs: BlobStore) -> None:
    spec = await blobs.put(encode(SPEC))
    earlier = await save_output(blobs, text="a cat")
    loaded, step, payload = await load_step(blobs, asked(spec, earlier))
    assert loaded == SPEC
    assert (step.kind, step.pool) == (StepKind.RENDER, "fast")
    assert payload == {"1": {"inputs": {"t": "a cat"}}}


async def test_an_output_says_what_there_is(blobs: BlobStore) -> None:
    artifact = Artifact(id="art_1", name="a", media_type="image/png", size=1, sha256="0" * 64)
    sha256 = await save_output(blobs, body={"a": [1]}, artifacts=[artifact])
    assert json.loads(await blobs.get(sha256)) == {
        "text": None, "body": {"a": [1]}, "artifacts": ["artifact:art_1"],
    }  # fmt: skip


async def test_a_reference_to_nothing(blobs: BlobStore) -> None:
    spec = await blobs.put(encode(SPEC))
    with pytest.raises(InvalidRequest):
        await load_step(blobs, asked(spec))


async def test_a_lost_input(blobs: BlobStore) -> None:
    with pytest.raises(StepFailed):
        await load_step(blobs, asked("0" * 64))


@pytest.mark.parametrize("turns", range(12))
async def test_the_heart_stops_whenever_the_step_ends(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever turn of the loop that is: a cancellation must not meet a beat that survives it."""
    monkeypatch.setattr(module, "HEARTBEAT_INTERVAL", timedelta(0))

    async def step() -> None:
        async with heartbeating(60) as pulse:
            pulse.quicken()
            for _ in range(turns):
                await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await ActivityEnvironment().run(step)
