"""Translates requests of the Comfy API v2 to domain objects."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import ValidationError

from moyin.comfy_api.protocol_v2 import wire
from moyin.domain import references
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.validation import parse_json
from moyin.jobs.protocol.renders import check_graph_format

_HASH = re.compile(wire.HASH_PATTERN)
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
# The allowed labels: their characters need no escapes in a database's JSON path.
_LABEL = re.compile(r"[A-Za-z0-9_.:/ -]{1,64}")


def parse_job(body: bytes) -> JobSpec:
    """Return the spec of a submitted render job, with its graph unchanged.

    Raises:
        InvalidJson: the body is not JSON.
        BodyTooLarge: the body has too many values to be parsed safely.
        InvalidRequest: a field is invalid; the error names the field.
        EditorGraphFormat: the graph is in the format that ComfyUI's editor saves.
        UnsupportedFeature: the body has a key for partner nodes, which are not supported.
    """
    data = parse_json(body)
    try:
        submission = wire.Submission.model_validate(data)
    except ValidationError as error:
        raise _to_invalid_request(error) from None
    if submission.extra_data is not None and submission.extra_data.api_key_comfy_org:
        # The job would have to store the key.
        raise UnsupportedFeature(
            "nodes that call Comfy's partners are not supported: omit api_key_comfy_org",
            field="extra_data",
        )
    check_graph_format(submission.workflow, "workflow")
    # Escape strings that would be parsed as references to steps of a pipeline.
    graph = references.escape_references(submission.workflow)
    return JobSpec(
        kind=StepKind.RENDER.value,
        steps=(Step(kind=StepKind.RENDER, payload=graph),),
        metadata=submission.metadata,
    )


def parse_hash(content_hash: str) -> str | None:
    """Return the digits of ``blake3:<hex digits>``, or None if the hash has another format."""
    return content_hash.removeprefix("blake3:") if _HASH.fullmatch(content_hash) else None


def parse_label_filters(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the labels in the query parameters ``metadata[<key>]=<value>``.

    Raises:
        InvalidRequest: a parameter is invalid; the error names the parameter.
    """
    labels: dict[str, str] = {}
    for name, value in query:
        match = _FILTER.fullmatch(name)
        if match is None:
            continue
        if not _LABEL.fullmatch(match[1]) or labels.setdefault(match[1], value) != value:
            raise InvalidRequest(
                f"{name[:80]}: the key must match {_LABEL.pattern} and must have only one value",
                field="metadata[]",
            )
    if len(labels) > wire.MAX_LABELS:
        raise InvalidRequest(
            f"too many metadata filters: at most {wire.MAX_LABELS} are allowed", field="metadata[]"
        )
    return labels


def _to_invalid_request(error: ValidationError) -> InvalidRequest:
    first_error = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first_error["loc"])
    return InvalidRequest(f"{field or 'the body'}: {first_error['msg']}", field=field or None)
