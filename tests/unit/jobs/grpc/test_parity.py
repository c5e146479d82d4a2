"""Tests that moyin.proto has every member of the HTTP API's jobs, events and filters."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel

from moyin.domain.job import EventType, JobStatus
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.translate import EVENT_FIELDS
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.event_bodies import EVENT_BODIES, ProgressEvent, StatusEvent, StepEvent
from moyin.jobs.protocol.filters import JobsQuery

MESSAGES: dict[type[BaseModel], Any] = {
    wire.JobDetail: pb.Job,
    wire.ProgressBody: pb.Progress,
    wire.ArtifactBody: pb.Artifact,
    wire.ErrorBody: pb.JobError,
    wire.CancellerBody: pb.Canceller,
    wire.ChildBody: pb.Child,
    wire.EtaBody: pb.Eta,
    wire.SecondsBody: pb.Seconds,
    wire.SubmittedJob: pb.SubmittedJob,
    wire.SubmittedStep: pb.SubmittedStep,
    wire.JobPage: pb.ListJobsResponse,
    ProgressEvent: pb.ProgressEvent,
    StepEvent: pb.StepEvent,
    JobsQuery: pb.ListJobsRequest,
}
# OutputBody is in `outputs_json`; a list has jobs without details.
NAMES = {model: message.DESCRIPTOR.name for model, message in MESSAGES.items()}
NAMES[wire.JobBody] = "Job"


def list_members(descriptor: Descriptor) -> dict[str, str]:
    """Return the JSON members that a message's fields represent, with their types."""
    members = {}
    for field in descriptor.fields:
        member = field.name.removesuffix("_json")
        if member != field.name:
            members[member] = "json"
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            members[member] = "plain"
        else:
            members[member] = field.message_type.name
    return members


def find_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models within a type such as ``list[Model] | None``."""
    if (
        isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
        and get_origin(annotation) is None
    ):
        yield annotation
    elif get_origin(annotation) in (list, types.UnionType):
        for argument in get_args(annotation):
            yield from find_models(argument)


@pytest.mark.parametrize("model", MESSAGES, ids=lambda model: model.__name__)
def test_a_message_has_the_members_of_its_model(model: type[BaseModel]) -> None:
    members = list_members(MESSAGES[model].DESCRIPTOR)
    assert members.keys() == model.model_fields.keys()
    for name, field in model.model_fields.items():
        for nested_model in find_models(field.annotation):
            expected_type = "json" if nested_model is wire.OutputBody else NAMES[nested_model]
            assert members[name] == expected_type, name


def test_every_status_is_listed() -> None:
    names = {f"JOB_STATUS_{status.value.upper()}" for status in JobStatus}
    assert {*pb.JobStatus.keys()} == names | {"JOB_STATUS_UNSPECIFIED"}


def test_every_event_is_typed() -> None:
    # WatchJob sends no previews, for which a client asks by `?previews=true`.
    sent_types = {kind for kind in EventType if kind is not EventType.PREVIEW}
    assert EVENT_FIELDS.keys() == {kind.value for kind in sent_types}
    oneof = pb.JobEvent.DESCRIPTOR.oneofs_by_name["data"]
    fields: list[Any] = list(oneof.fields)
    names = {field.name: field.message_type.name for field in fields}
    assert {*EVENT_FIELDS.values()} == names.keys()
    for kind in sent_types:
        body = EVENT_BODIES[kind]
        assert names[EVENT_FIELDS[kind.value]] == body.__name__


def test_a_status_event_is_a_job_and_its_attempt() -> None:
    fields = pb.StatusEvent.DESCRIPTOR.fields_by_name
    assert {*fields} == {"job", "attempt"}
    own_fields = StatusEvent.model_fields.keys() - wire.JobBody.model_fields.keys()
    assert own_fields == {"attempt"}
