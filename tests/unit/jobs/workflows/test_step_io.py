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
from moyin.jobs.workflows import step_io as module
from moyin.jobs.workflows.step_io import load_step, save_output, send_heartbeats
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


def make_step_input(spec: str, *earlier_outputs: str) -> StepInput:
    return StepInput(
        job_id="j", owner="ann", index=1, spec=spec, earlier=earlier_outputs, attempt=1
    )


async def test_a_step_receives_the_outputs_of_earlier_steps(blobs: BlobStore) -> None:
    spec = await blobs.put(encode(SPEC))
    earlier_output = await save_output(blobs, text="a cat")
    loaded_spec, step, payload = await load_step(blobs, make_step_input(spec, earlier_output))
    assert loaded_spec == SPEC
    assert (step.kind, step.pool) == (StepKind.RENDER, "fast")
    assert payload == {"1": {"inputs": {"t": "a cat"}}}


async def test_an_output_has_its_text_body_and_artifacts(blobs: BlobStore) -> None:
    artifact = Artifact(id="art_1", name="a", media_type="image/png", size=1, sha256="0" * 64)
    sha256 = await save_output(blobs, body={"a": [1]}, artifacts=[artifact])
    assert json.loads(await blobs.get(sha256)) == {
        "text": None, "body": {"a": [1]}, "artifacts": ["artifact:art_1"],
    }  # fmt: skip


async def test_a_reference_to_a_missing_output_is_refused(blobs: BlobStore) -> None:
    spec = await blobs.put(encode(SPEC))
    with pytest.raises(InvalidRequest):
        await load_step(blobs, make_step_input(spec))


async def test_a_missing_blob_fails_the_step(blobs: BlobStore) -> None:
    with pytest.raises(StepFailed):
        await load_step(blobs, make_step_input("0" * 64))


@pytest.mark.parametrize("iteration_count", range(12))
async def test_heartbeats_stop_whenever_the_step_ends(
    iteration_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No heartbeat follows the step's end, in whichever iteration of the event loop it ends."""
    monkeypatch.setattr(module, "HEARTBEAT_INTERVAL", timedelta(0))

    async def run_step() -> None:
        async with send_heartbeats(60) as heartbeat:
            heartbeat.use_shortest_interval()
            for _ in range(iteration_count):
                await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await ActivityEnvironment().run(run_step)
