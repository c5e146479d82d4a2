"""Translates render steps and batches of the jobs API to the domain types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moyin.domain.job import Step, StepKind
from moyin.domain.template import Template, fill_template
from moyin.errors import EditorGraphFormat, InvalidRequest
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.batch import build_batch_steps

DEFAULT_POOL = "default"
# A function that returns the template with the name in the first argument. Without such a template,
# it raises InvalidRequest for the field in the second argument.
Templates = Callable[[str, str], Template]


def refuse_templates(name: str, field: str) -> Template:
    """Raise InvalidRequest for every name; stands in for templates in APIs that support none."""
    raise InvalidRequest(
        f"{field} is not supported by this API: send a workflow instead", field=field
    )


def translate_render_step(
    step: wire.RenderStep, prefix: str, pool: str | None, templates: Templates
) -> Step:
    """Translate a render step of the jobs API to a step of the domain.

    Args:
        prefix: the start of field names in errors, such as ``steps.1.``.
        pool: the render pool for steps that do not name a pool.

    Raises:
        InvalidRequest: a field is invalid.
    """
    if step.template is None:
        return _build_step_from_graph(step, prefix, pool)
    template = templates(step.template, f"{prefix}template")
    step_without_graph = _build_step_from_template(step, template, prefix, pool)
    return replace(
        step_without_graph, payload=fill_template(template, step_without_graph.inputs, prefix)
    )


def translate_render_batch(
    job: wire.RenderJob, batch: wire.Batch, templates: Templates
) -> tuple[Mapping[str, Any], tuple[Step, ...]]:
    """Return the graph that all children of a batch share, and each child as a step.

    The payload of such a step is a patch: only the nodes and inputs in which the child's graph
    differs from the shared graph.
    """
    if job.template is None:
        step_without_batch = _build_step_from_graph(job, "", job.pool)
        return build_batch_steps(batch, step_without_batch, None)
    template = templates(job.template, "template")
    step_without_batch = _build_step_from_template(job, template, "", job.pool)
    return build_batch_steps(batch, step_without_batch, template)


def _build_step_from_template(
    step: wire.RenderStep, template: Template, prefix: str, pool: str | None
) -> Step:
    """Return a step for a render of the template; its graph is empty until the caller sets it.

    Args:
        prefix: the start of field names in errors, such as ``steps.1.``.
        pool: the render pool for steps that do not name a pool.

    Raises:
        InvalidRequest: the step has a graph, too.
    """
    if step.workflow is not None:
        raise InvalidRequest(
            "a render must have a workflow or a template, and has both", field=f"{prefix}template"
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


def _build_step_from_graph(step: wire.RenderStep, prefix: str, pool: str | None) -> Step:
    if step.workflow is None:
        raise InvalidRequest(
            "a render must have a workflow or a template, and has neither",
            field=f"{prefix}workflow",
        )
    if step.inputs is not None:
        raise InvalidRequest(
            f"{prefix}inputs is allowed only with a template: omit it, or use a template instead of "
            "a workflow",
            field=f"{prefix}inputs",
        )
    check_graph_format(step.workflow, f"{prefix}workflow")
    return Step(
        kind=StepKind.RENDER,
        payload=step.workflow,
        pool=step.pool or pool or DEFAULT_POOL,
        cache=step.cache,
    )


def check_graph_format(graph: Mapping[str, Any], field: str) -> None:
    """Check that a graph is in ComfyUI's API format, without a check of its node classes.

    Args:
        field: the path of the graph in the request, for errors.

    Raises:
        EditorGraphFormat: the graph is in the format of ComfyUI's editor.
        InvalidRequest: the graph has no nodes, or a node is malformed.
    """
    if not graph:
        raise InvalidRequest(f"{field} must be a graph with at least one node", field=field)
    if isinstance(graph.get("nodes"), list):
        raise EditorGraphFormat(
            f"{field} is in the format of ComfyUI's editor: convert it with `POST /graphs/convert`",
            field=field,
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
