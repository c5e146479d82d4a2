"""Defines the bodies of the Comfy API v2.

Source: the OpenAPI document of `comfy-sdk` (https://github.com/Comfy-Org/comfy-python-sdk), which
serverless deployments, Comfy's cloud and self-hosted servers share.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from moyin.jobs.protocol.wire import MetadataKey, MetadataValue

__all__ = [
    "AssetBody",
    "ErrorBody",
    "ErrorEnvelope",
    "FromHash",
    "JobBody",
    "JobList",
    "JobSummary",
    "JobUrls",
    "NodeFailure",
    "OutputBody",
    "ProgressBody",
    "StatusBody",
    "Submission",
    "WorkflowBody",
]

MAX_LABELS = 16
HASH = r"^blake3:[0-9a-f]{64}$"
Status = Literal["queued", "running", "succeeded", "canceling", "canceled", "failed", "expired"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExtraData(_Request):
    """`api_key_comfy_org` is for nodes that call Comfy's partners, which the farm does not run."""

    api_key_comfy_org: str | None = None


class Submission(_Request):
    """A graph in ComfyUI's API format; `{"__type": "core/ASSET", "info": {"id": …}}` is a file."""

    workflow: dict[str, JsonValue]
    extra_data: ExtraData | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="Labels to find the job by."
    )


class FromHash(_Request):
    """A new asset of stored content. `tags` and `expires_in` are ignored: assets do not expire."""

    hash: str = Field(pattern=HASH)
    file_path: str | None = Field(None, max_length=1024)
    tags: list[str] = Field(default_factory=list, max_length=64)
    expires_in: int | None = Field(None, ge=60, le=604_800)


class AssetBody(BaseModel):
    """A file of the caller. `hash` is null for outputs of jobs; `url` requires the caller's key."""

    id: str
    hash: str | None
    size_bytes: int
    content_type: str
    file_path: str | None
    created_new: bool | None = None
    created_at: datetime
    url: str
    url_expires_at: datetime
    expires_at: datetime | None = None
    job_id: str | None = None


class OutputBody(BaseModel):
    """A file that a job produced; `id` is its asset."""

    node_id: str
    name: str
    type: Literal["image", "video", "audio", "text", "file", "latent"]
    content_type: str
    size_bytes: int
    id: str
    hash: str | None
    url: str
    url_expires_at: datetime
    job_id: str


class ProgressBody(BaseModel):
    """The progress of a job; `value` is between 0 and 1."""

    value: float
    nodes_done: int
    nodes_total: int
    current_node: str | None = None
    message: str | None = None


class NodeFailure(BaseModel):
    """The reason why a job failed; `code` is one of Moyin's."""

    code: str
    message: str
    node_id: str | None = None
    class_type: str | None = None


class JobUrls(BaseModel):
    """The paths of a job, its event stream and its cancellation."""

    self: str
    events: str
    cancel: str


class JobBody(BaseModel):
    """A render job; `/jobs/{id}` shows the same job."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime
    queue_position: int | None
    progress: ProgressBody | None
    outputs: list[OutputBody]
    error: NodeFailure | None
    metrics: dict[str, int | None]
    metadata: dict[str, str]
    urls: JobUrls


class JobSummary(BaseModel):
    """A job in a list."""

    id: str
    status: Status
    create_time: datetime
    update_time: datetime
    metadata: dict[str, str]


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` is null on the last page."""

    jobs: list[JobSummary]
    next_cursor: str | None


class StatusBody(BaseModel):
    """The data of the event `status`."""

    status: Status
    queue_position: int | None = None


class WorkflowBody(BaseModel):
    """The graph as it was submitted."""

    workflow: dict[str, Any]
    format: Literal["api"] = "api"


class ErrorBody(BaseModel):
    """An error; `code` is the Comfy API's if it has one, `details.code` is always Moyin's."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorEnvelope(BaseModel):
    """The body of an error response."""

    error: ErrorBody
