"""Defines the JSON data of a job's events, for documents and clients; `EventType` names the types."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from moyin.domain.job import EventType
from moyin.jobs.protocol import wire


class StatusEvent(wire.JobBody):
    """The job when it got the status that the event is named for."""

    attempt: int = Field(description="The attempt that the event belongs to, from 1.")


class ProgressEvent(BaseModel):
    """The progress of the step that is rendered now; in a batch, `value` of `max` children are done."""

    value: float = Field(description="Units that are done.")
    max: float = Field(description="All units.")
    step: int = Field(description="The step, from 0; in a batch, the child that reported last.")
    node: str | None = Field(None, description="The node at work; absent if unknown.")


class PreviewEvent(BaseModel):
    """A new preview picture of a render; sent only for `?previews=true`, and has no id."""

    step: int = Field(description="The step, from 0; in a batch, the child.")
    node: str | None = Field(None, description="The node at work; absent if unknown.")
    media_type: str = Field(description="`image/jpeg` or `image/png`.")
    url: str = Field(
        description="Where the job's newest preview is, relative to the gateway, for a minute."
    )


class StepEvent(BaseModel):
    """A finished step, whose result is recorded: a retry of the job does not repeat the step."""

    step: int = Field(description="The step, from 0.")
    artifacts: list[wire.ArtifactBody] = Field(description="The files that the step made.")
    value: float | None = Field(
        None, description="Units of the job that are done; absent with the last step."
    )
    max: float | None = Field(None, description="All units of the job; absent with the last step.")
    attempt: int = Field(description="The attempt that the event belongs to, from 1.")


EVENT_BODIES: Mapping[EventType, type[BaseModel]] = {
    EventType.QUEUED: StatusEvent,
    EventType.RUNNING: StatusEvent,
    EventType.PROGRESS: ProgressEvent,
    EventType.PREVIEW: PreviewEvent,
    EventType.STEP: StepEvent,
    EventType.SUCCEEDED: StatusEvent,
    EventType.FAILED: StatusEvent,
    EventType.CANCELLED: StatusEvent,
}
