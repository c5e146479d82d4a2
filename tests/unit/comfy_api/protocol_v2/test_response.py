from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from moyin.comfy_api.protocol_v2.response import V2Presenter, to_progress, to_summary
from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.domain.job import Job, JobError, JobStatus, Progress, StepResult

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"
PRESENTER = V2Presenter(base_url="https://gateway.example/", retention=timedelta(days=2), now=NOW)


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
    body = PRESENTER.to_job_body(job(), [])
    assert (body.id, body.status, body.metadata) == (JOB, "running", {"batch": "7"})
    assert body.progress is not None
    assert (body.progress.value, body.progress.nodes_done, body.progress.nodes_total) == (
        0.25,
        1,
        4,
    )
    assert body.expires_at == NOW - timedelta(seconds=9) + timedelta(days=2)
    assert body.metrics == {"queue_ms": 1000, "execution_ms": None}
    assert body.urls.events == f"/api/v2/jobs/{JOB}/events"
    assert (body.error, body.outputs, body.completed_at) == (None, [], None)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (JobStatus.QUEUED, "queued"),
        (JobStatus.SUCCEEDED, "succeeded"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.CANCELLED, "canceled"),
    ],
)
def test_statuses(status: JobStatus, expected: str) -> None:
    assert PRESENTER.to_job_body(job(status), []).status == expected
    assert to_summary(job(status)).status == expected


def test_a_queued_job_has_no_progress() -> None:
    assert PRESENTER.to_job_body(job(JobStatus.QUEUED), []).progress is None


def test_output_files_have_their_nodes_and_types() -> None:
    files = (
        artifact(1),
        artifact(2, "video/mp4"),
        artifact(3, "application/octet-stream"),
        artifact(4, "model/gltf-binary"),
        artifact(5, "audio/flac"),
    )
    refs = [f"artifact:{output.id}" for output in files]
    outputs = {
        "9": {"images": [refs[0], refs[1]], "text": ["a fox", {"a": 1}]},
        "12": {"latents": [refs[2]], "audio": [refs[4]]},
    }
    result = StepResult(index=0, output="", artifacts=files)
    [*body] = PRESENTER.to_output_bodies(job(results=(result,)), [{"body": {"outputs": outputs}}])
    assert [(output.node_id, output.type, output.id) for output in body] == [
        ("9", "image", files[0].id),
        ("9", "video", files[1].id),
        ("12", "latent", files[2].id),
        ("12", "audio", files[4].id),
        ("", "file", files[3].id),
    ]
    assert body[0].url == f"https://gateway.example/api/v2/assets/{files[0].id}/content"
    assert (body[0].hash, body[0].job_id, body[0].size_bytes) == (None, JOB, 7)


@pytest.mark.parametrize("output", [{}, {"body": None}, {"body": []}])
def test_files_without_an_output_are_listed(output: dict[str, Any]) -> None:
    result = StepResult(index=0, output="", artifacts=(artifact(1),))
    [body] = PRESENTER.to_output_bodies(job(results=(result,)), [output])
    assert (body.node_id, body.id) == ("", artifact(1).id)


def test_a_failure_names_the_node() -> None:
    error = JobError(
        code="render_failed", message="no", details={"node_id": 4, "node_type": "KSampler"}
    )
    body = PRESENTER.to_job_body(job(JobStatus.FAILED, error=error), []).error
    assert body is not None
    assert body.model_dump() == {
        "code": "render_failed", "message": "no", "node_id": "4", "class_type": "KSampler",
    }  # fmt: skip


def test_an_asset_has_its_hash_if_it_is_known() -> None:
    upload = StoredArtifact(artifact=artifact(1, blake3="b" * 64), job_id=None, created_at=NOW)
    body = PRESENTER.to_asset_body(upload, is_new=True)
    assert (body.hash, body.created_new, body.job_id) == (f"blake3:{'b' * 64}", True, None)
    files = StoredArtifact(artifact=artifact(1), job_id=JOB, created_at=NOW)
    assert (PRESENTER.to_asset_body(files).hash, PRESENTER.to_asset_body(files).job_id) == (
        None,
        JOB,
    )


@pytest.mark.parametrize(
    ("progress", "value"),
    [(Progress(value=0, max=0), 0.0), (Progress(value=9, max=4), 1.0), (Progress(max=3), 0.0)],
)
def test_progress_is_a_fraction(progress: Progress, value: float) -> None:
    assert to_progress(progress, "5").value == value
    assert to_progress(progress, "5").current_node == "5"
