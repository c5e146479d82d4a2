from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from moyin.comfy_api.protocol_v2.response import V2Presenter, progress_of, summary_of
from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.domain.job import Job, JobError, JobStatus, Progress, StepResult

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"
TELLER = V2Presenter(base="https://door.example/", retention=timedelta(days=2), now=NOW)


def artifact(number: int, media_type: str = "image/png", **changes: Any) -> Artifact:
    values = {
        "id": f"art_{number:032x}", "name": f"{number}.bin", "media_type": media_type,
        "size": 7, "sha256": "a" * 64, **changes,
    }  # fmt: skip
    return Artifact(**values)


def job(status: JobStatus = JobStatus.RUNNING, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": JOB, "owner": "ann", "kind": "render", "status": status, "spec": "", "steps": 1,
        "progress": Progress(value=1, max=4), "results": (), "error": None, "attempts": 1,
        "priority": 3, "metadata": {"batch": "7"}, "created_at": NOW - timedelta(seconds=9),
        "started_at": NOW - timedelta(seconds=8), "finished_at": None, **changes,
    }  # fmt: skip
    return Job(**values)


def test_a_running_job() -> None:
    told = TELLER.job(job(), [])
    assert (told.id, told.status, told.metadata) == (JOB, "running", {"batch": "7"})
    assert told.progress is not None
    assert (told.progress.value, told.progress.nodes_done, told.progress.nodes_total) == (
        0.25,
        1,
        4,
    )
    assert told.expires_at == NOW - timedelta(seconds=9) + timedelta(days=2)
    assert told.metrics == {"queue_ms": 1000, "execution_ms": None}
    assert told.urls.events == f"/api/v2/jobs/{JOB}/events"
    assert (told.error, told.outputs, told.completed_at) == (None, [], None)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (JobStatus.QUEUED, "queued"),
        (JobStatus.SUCCEEDED, "succeeded"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.CANCELLED, "canceled"),
    ],
)
def test_statuses(status: JobStatus, told: str) -> None:
    assert TELLER.job(job(status), []).status == told
    assert summary_of(job(status)).status == told


def test_a_queued_job_has_no_progress() -> None:
    assert TELLER.job(job(JobStatus.QUEUED), []).progress is None


def test_files_have_their_nodes_and_kinds_and_none_is_dropped() -> None:
    made = (
        artifact(1),
        artifact(2, "video/mp4"),
        artifact(3, "application/octet-stream"),
        artifact(4, "model/gltf-binary"),
        artifact(5, "audio/flac"),
    )
    refs = [f"artifact:{one.id}" for one in made]
    outputs = {
        "9": {"images": [refs[0], refs[1]], "text": ["a fox", {"a": 1}]},
        "12": {"latents": [refs[2]], "audio": [refs[4]]},
    }
    result = StepResult(index=0, output="", artifacts=made)
    [*told] = TELLER.outputs(job(results=(result,)), [{"body": {"outputs": outputs}}])
    assert [(one.node_id, one.type, one.id) for one in told] == [
        ("9", "image", made[0].id),
        ("9", "video", made[1].id),
        ("12", "latent", made[2].id),
        ("12", "audio", made[4].id),
        ("", "file", made[3].id),
    ]
    assert told[0].url == f"https://door.example/api/v2/assets/{made[0].id}/content"
    assert (told[0].hash, told[0].job_id, told[0].size_bytes) == (None, JOB, 7)


@pytest.mark.parametrize("output", [{}, {"body": None}, {"body": []}])
def test_files_of_an_output_that_is_gone_are_told_all_the_same(output: dict[str, Any]) -> None:
    result = StepResult(index=0, output="", artifacts=(artifact(1),))
    [told] = TELLER.outputs(job(results=(result,)), [output])
    assert (told.node_id, told.id) == ("", artifact(1).id)


def test_a_failure_names_the_node() -> None:
    error = JobError(
        code="render_failed", message="no", details={"node_id": 4, "node_type": "KSampler"}
    )
    told = TELLER.job(job(JobStatus.FAILED, error=error), []).error
    assert told is not None
    assert told.model_dump() == {
        "code": "render_failed", "message": "no", "node_id": "4", "class_type": "KSampler",
    }  # fmt: skip


def test_an_asset_tells_its_hash_where_there_is_one() -> None:
    upload = StoredArtifact(artifact=artifact(1, blake3="b" * 64), job_id=None, created_at=NOW)
    told = TELLER.asset(upload, new=True)
    assert (told.hash, told.created_new, told.job_id) == (f"blake3:{'b' * 64}", True, None)
    made = StoredArtifact(artifact=artifact(1), job_id=JOB, created_at=NOW)
    assert (TELLER.asset(made).hash, TELLER.asset(made).job_id) == (None, JOB)


@pytest.mark.parametrize(
    ("progress", "value"),
    [(Progress(value=0, max=0), 0.0), (Progress(value=9, max=4), 1.0), (Progress(max=3), 0.0)],
)
def test_progress_is_a_fraction(progress: Progress, value: float) -> None:
    assert progress_of(progress, "5").value == value
    assert progress_of(progress, "5").current_node == "5"
