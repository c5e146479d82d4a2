"""Render steps of the jobs API to the domain: graphs of the client's own, and templates. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moyin.domain.job import Step, StepKind
from moyin.domain.template import Template, fill
from moyin.errors import EditorGraphFormat, InvalidRequest
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.batch import batch_steps

__all__ = [
    "DEFAULT_POOL",
    "Templates",
    "check_graph",
    "no_templates",
    "render_batch",
    "render_step",
]

DEFAULT_POOL = "default"
# Finds a template by its name; raises InvalidRequest for the field when there is none.
Templates = Callable[[str, str], Template]


def no_templates(name: str, field: str) -> Template:
    """Where there are none."""
    raise InvalidRequest("there are no templates here", field=field)


def render_step(step: wire.RenderStep, prefix: str, pool: str | None, templates: Templates) -> Step:
    """The domain form of a render step.

    Args:
        prefix: of fields in errors, such as ``steps.1.``.
        pool: the job's.

    Raises:
        InvalidRequest: naming the field.
    """
    if step.template is None:
        return _own_graph(step, prefix, pool)
    template = templates(step.template, f"{prefix}template")
    head = _head(step, template, prefix, pool)
    return replace(head, payload=fill(template, head.inputs, prefix))


def render_batch(
    job: wire.RenderJob, batch: wire.Batch, templates: Templates
) -> tuple[Mapping[str, Any], tuple[Step, ...]]:
    """The graph that the children of a batch have in common, and the children.

    Raises:
        InvalidRequest: naming the field.
    """
    if job.template is None:
        first = _own_graph(job, "", job.pool)
        return batch_steps(batch, first, None)
    template = templates(job.template, "template")
    first = _head(job, template, "", job.pool)
    return batch_steps(batch, first, template)


def _head(step: wire.RenderStep, template: Template, prefix: str, pool: str | None) -> Step:
    """All but the graph."""
    if step.workflow is not None:
        raise InvalidRequest(
            "a render has a workflow or a template, not both", field=f"{prefix}template"
        )
    return Step(
        kind=StepKind.RENDER,
        payload={},
        pool=step.pool or pool or template.pool or DEFAULT_POOL,
        template=template.name,
        inputs=step.inputs or {},
        outputs=template.outputs,
        cache=step.cache,
    )


def _own_graph(step: wire.RenderStep, prefix: str, pool: str | None) -> Step:
    if step.workflow is None:
        raise InvalidRequest("a render needs a workflow or a template", field=f"{prefix}workflow")
    if step.inputs is not None:
        raise InvalidRequest("inputs belong to a template", field=f"{prefix}inputs")
    check_graph(step.workflow, f"{prefix}workflow")
    return Step(
        kind=StepKind.RENDER,
        payload=step.workflow,
        pool=step.pool or pool or DEFAULT_POOL,
        cache=step.cache,
    )


def check_graph(graph: Mapping[str, Any], field: str) -> None:
    """Refuse what is no graph in ComfyUI's API format, whichever nodes there are.

    Raises:
        EditorGraphFormat: it is as ComfyUI's editor saves it.
        InvalidRequest: naming the part of ``field``.
    """
    if not graph:
        raise InvalidRequest("the graph has no nodes", field=field)
    if isinstance(graph.get("nodes"), list):
        raise EditorGraphFormat(
            "this is ComfyUI's editor format; export the workflow in API format", field=field
        )
    for node_id, node in graph.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
            raise InvalidRequest(
                f"node {node_id[:64]!r} must be an object with a class_type",
                field=f"{field}.{node_id[:64]}.class_type",
            )
        if not isinstance(node.get("inputs", {}), Mapping):
            raise InvalidRequest(
                f"inputs of node {node_id[:64]!r} must be an object",
                field=f"{field}.{node_id[:64]}.inputs",
            )
