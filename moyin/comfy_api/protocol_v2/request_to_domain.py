"""The Comfy API v2 to the domain; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import ValidationError

from moyin.comfy_api.protocol_v2 import wire
from moyin.domain import references
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.validation import parse_json
from moyin.jobs.protocol.renders import check_graph

__all__ = ["digest_of", "labels_of", "parse_job"]

_HASH = re.compile(wire.HASH)
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
# What a database's path of a JSON member can name without escapes.
_LABEL = re.compile(r"[A-Za-z0-9_.:/ -]{1,64}")


def parse_job(body: bytes) -> JobSpec:
    """The render job that a submission asks for, its graph verbatim.

    Raises:
        InvalidJson: the body is not JSON.
        BodyTooLarge: it may hold too many values.
        InvalidRequest, EditorGraphFormat: naming the field.
        UnsupportedFeature: a key for nodes that the farm does not run.
    """
    data = parse_json(body)
    try:
        asked = wire.Submission.model_validate(data)
    except ValidationError as error:
        raise _invalid(error) from None
    if asked.extra_data is not None and asked.extra_data.api_key_comfy_org:
        # It would have to be kept for as long as the job waits.
        raise UnsupportedFeature(
            "the farm runs no partner nodes and keeps no keys for them", field="extra_data"
        )
    check_graph(asked.workflow, "workflow")
    # A text in a graph that looks like a reference to a step of a pipeline is a text here.
    graph = references.escape_references(asked.workflow)
    return JobSpec(
        kind=StepKind.RENDER.value,
        steps=(Step(kind=StepKind.RENDER, payload=graph),),
        metadata=asked.metadata,
    )


def digest_of(given: str) -> str | None:
    """The hex digest in ``blake3:<hex>``; None where it is none."""
    return given.removeprefix("blake3:") if _HASH.fullmatch(given) else None


def labels_of(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The labels that a list is filtered by, from ``metadata[<key>]=<value>``.

    Raises:
        InvalidRequest: naming the filter.
    """
    labels: dict[str, str] = {}
    for name, value in query:
        match = _FILTER.fullmatch(name)
        if match is None:
            continue
        if not _LABEL.fullmatch(match[1]) or labels.setdefault(match[1], value) != value:
            raise InvalidRequest(f"{name[:80]} can't be filtered by", field="metadata[]")
    if len(labels) > wire.MAX_LABELS:
        raise InvalidRequest(f"at most {wire.MAX_LABELS} filters", field="metadata[]")
    return labels


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return InvalidRequest(f"{field or 'the body'}: {first['msg']}", field=field or None)
