"""Defines the JSON of a job's events; the API's documentation is generated from these classes.

`EventType` lists the types of events.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from moyin.domain.job import EventType
from moyin.jobs.protocol import wire


class StatusEvent(wire.JobBody):
    """The state of the job when it got the status that the event's type names."""

    attempt: int = Field(description="The attempt that the event belongs to, from 1.")


class ProgressEvent(BaseModel):
    """The progress of the current render; in a batch, `value` of `max` children are done."""

    value: float = Field(description="Units that are done.")
    max: float = Field(description="All units.")
    step: int = Field(description="The step, from 0; in a batch, the child that reported last.")
    node: str | None = Field(None, description="The node at work; absent if unknown.")


class PreviewEvent(BaseModel):
    """A new preview picture of a render. The event has no id, and needs `?previews=true`."""

    step: int = Field(description="The step, from 0; in a batch, the child.")
    node: str | None = Field(None, description="The node at work; absent if unknown.")
    media_type: str = Field(description="`image/jpeg` or `image/png`.")
    url: str = Field(
        description="Where the job's newest preview is, relative to the gateway, for a minute."
    )


class StepEvent(BaseModel):
    """A finished step. Its result is recorded, so a retry of the job does not repeat the step."""

    step: int = Field(description="The step, from 0.")
    artifacts: list[wire.ArtifactBody] = Field(description="The files that the step made.")
    value: float | None = Field(
        None, description="Units of the job that are done; absent with the last step."
    )
    max: float | None = Field(None, description="All units of the job; absent with the last step.")
    attempt: int = Field(description="The attempt that the event belongs to, from 1.")


class StreamError(BaseModel):
    """The error that ends a stream of server-sent events; the job continues."""

    code: str = Field(description="A stable code of docs/reference/errors.md.")
    message: str
    request_id: str


EventBody = StatusEvent | ProgressEvent | PreviewEvent | StepEvent
EVENT_BODIES: Mapping[EventType, type[EventBody]] = {
    EventType.QUEUED: StatusEvent,
    EventType.RUNNING: StatusEvent,
    EventType.PROGRESS: ProgressEvent,
    EventType.PREVIEW: PreviewEvent,
    EventType.STEP: StepEvent,
    EventType.SUCCEEDED: StatusEvent,
    EventType.FAILED: StatusEvent,
    EventType.CANCELLED: StatusEvent,
}


class _Message(BaseModel):
    id: str | None = Field(
        description="The cursor that resumes after this event: the Unix milliseconds when the event was "
        "published, a hyphen and a number. Null or absent if the event was made from the job's row."
    )


class StatusMessage(_Message):
    """The job has a new status; `succeeded`, `failed` and `cancelled` end the stream."""

    type: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    data: StatusEvent


class ProgressMessage(_Message):
    """A render has made progress."""

    type: Literal["progress"]
    data: ProgressEvent


class PreviewMessage(_Message):
    """A render has a new preview picture."""

    type: Literal["preview"]
    data: PreviewEvent


class StepMessage(_Message):
    """A step has finished."""

    type: Literal["step"]
    data: StepEvent


JobEvent = Annotated[
    StatusMessage | ProgressMessage | PreviewMessage | StepMessage,
    Field(discriminator="type", title="JobEvent"),
]
# The messages of a WebSocket, one for each event; server-sent events have the same three members.
JOB_EVENT: TypeAdapter[StatusMessage | ProgressMessage | PreviewMessage | StepMessage] = (
    TypeAdapter(JobEvent)
)


class WebhookBody(BaseModel):
    """The body of a webhook, which is sent when a job has ended."""

    type: Literal["job.succeeded", "job.failed", "job.cancelled"]
    timestamp: datetime = Field(description="The time at which the job ended.")
    data: StatusEvent
