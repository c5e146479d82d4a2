"""Defines the request and response bodies of the Comfy API v2.

Source: the OpenAPI document of `comfy-sdk` (https://github.com/Comfy-Org/comfy-python-sdk).
Serverless deployments, Comfy's cloud and self-hosted servers share this API.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from moyin.jobs.protocol.wire import MetadataKey, MetadataValue

MAX_LABELS = 16
HASH_PATTERN = r"^blake3:[0-9a-f]{64}$"
Status = Literal["queued", "running", "succeeded", "canceling", "canceled", "failed", "expired"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExtraData(_Request):
    """Extra data of a job. `api_key_comfy_org` must be null: partner nodes are not supported."""

    api_key_comfy_org: str | None = None


class Submission(_Request):
    """A job whose graph is in ComfyUI's API format.

    In the graph, `{"__type": "core/ASSET", "info": {"id": …}}` refers to an asset.
    """

    workflow: dict[str, JsonValue]
    extra_data: ExtraData | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="Labels to find the job by."
    )


class FromHash(_Request):
    """A request to create an asset from stored content. `tags` and `expires_in` have no effect."""

    hash: str = Field(pattern=HASH_PATTERN)
    file_path: str | None = Field(None, max_length=1024)
    tags: list[str] = Field(default_factory=list, max_length=64)
    expires_in: int | None = Field(None, ge=60, le=604_800)


class AssetBody(BaseModel):
    """A file of the caller. Job outputs have no `hash`. A request to `url` needs a key."""

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
    """A file that a job has produced. `id` is the id of its asset."""

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
    """The progress of a job. `value` is between 0 and 1."""

    value: float
    nodes_done: int
    nodes_total: int
    current_node: str | None = None
    message: str | None = None


class NodeFailure(BaseModel):
    """The error that ended a job. `code` is one of Moyin's error codes."""

    code: str
    message: str
    node_id: str | None = None
    class_type: str | None = None


class JobUrls(BaseModel):
    """The URL paths of a job, of its event stream, and of its cancellation."""

    self: str
    events: str
    cancel: str


class JobBody(BaseModel):
    """A render job. `/jobs/{id}` shows the same job in Moyin's format."""

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
    """The entry of a job in a list."""

    id: str
    status: Status
    create_time: datetime
    update_time: datetime
    metadata: dict[str, str]


class JobList(BaseModel):
    """A page of jobs, newest first. `next_cursor` is null on the last page."""

    jobs: list[JobSummary]
    next_cursor: str | None


class StatusBody(BaseModel):
    """The data of a server-sent event `status`."""

    status: Status
    queue_position: int | None = None


class WorkflowBody(BaseModel):
    """The graph of a job as it was submitted."""

    workflow: dict[str, Any]
    format: Literal["api"] = "api"


class ErrorBody(BaseModel):
    """An error. `code` is a code of the Comfy API if possible, and `details.code` is Moyin's."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorEnvelope(BaseModel):
    """The body of an error response."""

    error: ErrorBody
