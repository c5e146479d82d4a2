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


def make_artifact(number: int, media_type: str = "image/png", **changes: Any) -> Artifact:
    values = {
        "id": f"art_{number:032x}", "name": f"{number}.bin", "media_type": media_type,
        "size": 7, "sha256": "a" * 64, **changes,
    }  # fmt: skip
    return Artifact(**values)


def make_job(status: JobStatus = JobStatus.RUNNING, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": JOB, "owner": "ann", "kind": "render", "status": status, "spec": "", "steps": 1,
        "progress": Progress(value=1, max=4), "results": (), "error": None, "attempts": 1,
        "priority": 3, "metadata": {"batch": "7"}, "created_at": NOW - timedelta(seconds=9),
        "started_at": NOW - timedelta(seconds=8), "finished_at": None, **changes,
    }  # fmt: skip
    return Job(**values)


def test_a_running_job_has_progress_and_metrics() -> None:
    body = PRESENTER.to_job_body(make_job(), [])
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
    ("status", "v2_status"),
    [
        (JobStatus.QUEUED, "queued"),
        (JobStatus.SUCCEEDED, "succeeded"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.CANCELLED, "canceled"),
    ],
)
def test_a_status_has_its_v2_name(status: JobStatus, v2_status: str) -> None:
    assert PRESENTER.to_job_body(make_job(status), []).status == v2_status
    assert to_summary(make_job(status)).status == v2_status


def test_a_queued_job_has_no_progress() -> None:
    assert PRESENTER.to_job_body(make_job(JobStatus.QUEUED), []).progress is None


def test_output_files_have_their_nodes_and_types() -> None:
    files = (
        make_artifact(1),
        make_artifact(2, "video/mp4"),
        make_artifact(3, "application/octet-stream"),
        make_artifact(4, "model/gltf-binary"),
        make_artifact(5, "audio/flac"),
    )
    references = [f"artifact:{output.id}" for output in files]
    outputs = {
        "9": {"images": [references[0], references[1]], "text": ["a fox", {"a": 1}]},
        "12": {"latents": [references[2]], "audio": [references[4]]},
    }
    step_result = StepResult(index=0, output="", artifacts=files)
    [*bodies] = PRESENTER.to_output_bodies(
        make_job(results=(step_result,)), [{"body": {"outputs": outputs}}]
    )
    assert [(output.node_id, output.type, output.id) for output in bodies] == [
        ("9", "image", files[0].id),
        ("9", "video", files[1].id),
        ("12", "latent", files[2].id),
        ("12", "audio", files[4].id),
        ("", "file", files[3].id),
    ]
    assert bodies[0].url == f"https://gateway.example/api/v2/assets/{files[0].id}/content"
    assert (bodies[0].hash, bodies[0].job_id, bodies[0].size_bytes) == (None, JOB, 7)


@pytest.mark.parametrize("output", [{}, {"body": None}, {"body": []}])
def test_files_without_an_output_are_listed(output: dict[str, Any]) -> None:
    step_result = StepResult(index=0, output="", artifacts=(make_artifact(1),))
    [body] = PRESENTER.to_output_bodies(make_job(results=(step_result,)), [output])
    assert (body.node_id, body.id) == ("", make_artifact(1).id)


def test_a_failure_names_the_node() -> None:
    error = JobError(
        code="render_failed", message="no", details={"node_id": 4, "node_type": "KSampler"}
    )
    body = PRESENTER.to_job_body(make_job(JobStatus.FAILED, error=error), []).error
    assert body is not None
    assert body.model_dump() == {
        "code": "render_failed", "message": "no", "node_id": "4", "class_type": "KSampler",
    }  # fmt: skip


def test_an_asset_has_its_hash_if_it_is_known() -> None:
    upload = StoredArtifact(artifact=make_artifact(1, blake3="b" * 64), job_id=None, created_at=NOW)
    body = PRESENTER.to_asset_body(upload, is_new=True)
    assert (body.hash, body.created_new, body.job_id) == (f"blake3:{'b' * 64}", True, None)
    output = StoredArtifact(artifact=make_artifact(1), job_id=JOB, created_at=NOW)
    assert (PRESENTER.to_asset_body(output).hash, PRESENTER.to_asset_body(output).job_id) == (
        None,
        JOB,
    )


@pytest.mark.parametrize(
    ("progress", "fraction"),
    [(Progress(value=0, max=0), 0.0), (Progress(value=9, max=4), 1.0), (Progress(max=3), 0.0)],
)
def test_progress_is_a_fraction(progress: Progress, fraction: float) -> None:
    assert to_progress(progress, "5").value == fraction
    assert to_progress(progress, "5").current_node == "5"
