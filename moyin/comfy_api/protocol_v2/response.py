"""Translates jobs and files to response bodies of the Comfy API v2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from moyin.comfy_api.protocol_v2 import wire
from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.domain.job import Job, JobError, JobStatus, Progress

OutputKind = Literal["image", "video", "audio", "text", "file", "latent"]
_STATUS: Mapping[JobStatus, wire.Status] = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "canceled",
}
_KINDS: Mapping[str, OutputKind] = {
    "image": "image",
    "video": "video",
    "audio": "audio",
    "text": "text",
}
# The API requires an expiry time. The gateway's URLs do not expire, because they need a key.
_URL_LIFETIME = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class V2Presenter:
    """Builds the response bodies of jobs and files for one request.

    Attributes:
        base_url: the URL at which the client reaches the gateway, with a trailing slash.
        retention: the minimum time for which a job is stored.
        now: the time of the request.
    """

    base_url: str
    retention: timedelta
    now: datetime

    def to_job_body(self, job: Job, outputs: Iterable[Mapping[str, Any]]) -> wire.JobBody:
        """Return the body of a job with the ``outputs`` of its finished steps, in their order."""
        path = f"/api/v2/jobs/{job.id}"
        return wire.JobBody(
            id=job.id,
            status=to_status(job),
            created_at=job.created_at,
            started_at=job.started_at,
            completed_at=job.finished_at,
            expires_at=job.created_at + self.retention,
            queue_position=None,
            progress=None if job.status is JobStatus.QUEUED else to_progress(job.progress),
            outputs=self.to_output_bodies(job, outputs),
            error=None if job.error is None else _to_failure(job.error),
            metrics={
                "queue_ms": _compute_elapsed_milliseconds(job.created_at, job.started_at),
                "execution_ms": _compute_elapsed_milliseconds(job.started_at, job.finished_at),
            },
            metadata=dict(job.metadata),
            urls=wire.JobUrls(self=path, events=f"{path}/events", cancel=f"{path}/cancel"),
        )

    def to_output_bodies(
        self, job: Job, outputs: Iterable[Mapping[str, Any]]
    ) -> list[wire.OutputBody]:
        """Return the bodies of all files that the job has produced so far."""
        return [
            self._to_output_body(job.id, node, slot, artifact)
            for result, output in zip(job.results, outputs, strict=True)
            for node, slot, artifact in _iterate_artifacts_by_node(result.artifacts, output)
        ]

    def to_asset_body(
        self, stored_artifact: StoredArtifact, *, is_new: bool | None = None
    ) -> wire.AssetBody:
        """Return the body of an asset; ``is_new`` is True if this request has stored the content."""
        artifact = stored_artifact.artifact
        return wire.AssetBody(
            id=artifact.id, hash=_to_hash(artifact), size_bytes=artifact.size,
            content_type=artifact.media_type, file_path=artifact.name, created_new=is_new,
            created_at=stored_artifact.created_at, url=self._build_content_url(artifact),
            url_expires_at=self.now + _URL_LIFETIME, job_id=stored_artifact.job_id,
        )  # fmt: skip

    def _to_output_body(
        self, job_id: str, node: str, slot: str, artifact: Artifact
    ) -> wire.OutputBody:
        return wire.OutputBody(
            node_id=node, name=artifact.name, type=_to_kind(slot, artifact.media_type),
            content_type=artifact.media_type, size_bytes=artifact.size, id=artifact.id,
            hash=_to_hash(artifact), url=self._build_content_url(artifact),
            url_expires_at=self.now + _URL_LIFETIME, job_id=job_id,
        )  # fmt: skip

    def _build_content_url(self, artifact: Artifact) -> str:
        return f"{self.base_url}api/v2/assets/{artifact.id}/content"


def to_status(job: Job) -> wire.Status:
    """Return the Comfy API's name of the job's status."""
    return _STATUS[job.status]


def to_summary(job: Job) -> wire.JobSummary:
    """Return the entry of a job in a list of jobs."""
    return wire.JobSummary(
        id=job.id,
        status=to_status(job),
        create_time=job.created_at,
        update_time=job.finished_at or job.started_at or job.created_at,
        metadata=dict(job.metadata),
    )


def to_progress(progress: Progress, node: str | None = None) -> wire.ProgressBody:
    """Return the body of a progress event; ``node`` is the id of the node that is running."""
    fraction = min(1.0, progress.value / progress.max) if progress.max > 0 else 0.0
    return wire.ProgressBody(
        value=fraction,
        nodes_done=int(progress.value),
        nodes_total=int(progress.max),
        current_node=node,
    )


def _iterate_artifacts_by_node(
    artifacts: Sequence[Artifact], output: Mapping[str, Any]
) -> Iterator[tuple[str, str, Artifact]]:
    """Yield the node id, the output slot and the artifact of each file of a step.

    Files that the step's output does not assign to a node come last, with empty strings as node id
    and slot.
    """
    unassigned_artifacts = {f"artifact:{artifact.id}": artifact for artifact in artifacts}
    body = output.get("body")
    nodes = body.get("outputs", {}) if isinstance(body, Mapping) else {}
    for node, slots in nodes.items():
        for slot, items in slots.items():
            for item in items:
                artifact = unassigned_artifacts.pop(item, None) if isinstance(item, str) else None
                if artifact is not None:
                    yield node, slot, artifact
    for artifact in unassigned_artifacts.values():
        yield "", "", artifact


def _to_kind(slot: str, media_type: str) -> OutputKind:
    if slot == "latents":
        return "latent"
    return _KINDS.get(media_type.partition("/")[0], "file")


def _to_hash(artifact: Artifact) -> str | None:
    return None if artifact.blake3 is None else f"blake3:{artifact.blake3}"


def _to_failure(error: JobError) -> wire.NodeFailure:
    node_id, class_type = error.details.get("node_id"), error.details.get("node_type")
    return wire.NodeFailure(
        code=error.code,
        message=error.message,
        node_id=None if node_id is None else str(node_id),
        class_type=None if class_type is None else str(class_type),
    )


def _compute_elapsed_milliseconds(start: datetime | None, end: datetime | None) -> int | None:
    if start is None or end is None:
        return None
    return int((end - start).total_seconds() * 1000)
