"""Checks that steps refer only to outputs that exist, given the kinds of the earlier steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moyin.domain.job import Step, StepKind
from moyin.domain.references import Reference, iterate_references
from moyin.errors import InvalidRequest

_MEMBERS = ("text", "body", "artifacts")
_ARTIFACT_PATHS = (("id",), ("url",))
_MAX_FIELD_LENGTH = 256


def check_referenced_outputs(step: Step, earlier_steps: Sequence[Step], prefix: str) -> None:
    """Check that each reference in ``step`` names an output that the earlier step can have.

    The output of a chat step has a text and a body. The output of a render has artifacts and the
    body ``{"outputs": …}``. The output of an http step depends on the response.

    Args:
        earlier_steps: all steps before ``step``.
        prefix: the start of field names in errors, such as ``steps.1.``.

    Raises:
        InvalidRequest: a reference names an output that the earlier step can't have.
    """
    for reference in iterate_references(step.payload):
        problem = _explain_missing_output(earlier_steps[reference.step].kind, reference.path)
        if problem is not None:
            field = prefix + _find_field(step, reference)
            raise InvalidRequest(f"{field}: {reference.text} cannot exist: {problem}", field=field)


def _explain_missing_output(kind: StepKind, path: Sequence[str]) -> str | None:
    """Return why a step of this kind can't have an output at the path, or None if it can."""
    member, is_nested = path[0], len(path) > 1
    if member not in _MEMBERS:
        return f"an output has only the members {', '.join(_MEMBERS)}"
    if kind is StepKind.RENDER and member == "text":
        return (
            "a render has no text; use artifacts.0 for its first file, or "
            "body.outputs.<node>.<slot>.0 for a value of a node"
        )
    if kind is StepKind.RENDER and member == "body" and is_nested and path[1] != "outputs":
        return "the body of a render has only the member outputs"
    if kind is StepKind.CHAT and member == "artifacts" and is_nested:
        return "a chat has no artifacts; use text for its answer"
    if member == "artifacts" and len(path) > 2 and tuple(path[2:]) not in _ARTIFACT_PATHS:
        return "an artifact has only the members id and url"
    if member == "text" and is_nested:
        return "a text has no members"
    return None


def _find_field(step: Step, reference: Reference) -> str:
    """Return the field of the step's request that contains the reference."""
    if step.kind is not StepKind.RENDER:
        field = ".".join(("request", *reference.place))
    elif step.template is None:
        field = ".".join(("workflow", *reference.place))
    else:
        path = ".".join(("steps", str(reference.step), *reference.path))
        input_names = (
            name
            for name, value in step.inputs.items()
            if isinstance(value, Mapping) and value.get("from") == path
        )
        field = f"inputs.{next(input_names, '')}".rstrip(".")
    return field[:_MAX_FIELD_LENGTH]
