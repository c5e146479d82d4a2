"""Defines `FileNameReplacer`, which replaces names of uploads in a new job by ids of artifacts.

ComfyUI's clients refer to files by name. A job refers to artifacts instead, so that a later upload
with the same name does not change what the job renders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from moyin.domain import references
from moyin.domain.artifact import Artifact
from moyin.domain.job import MAX_BATCH_CHILDREN, JobSpec, Step, StepKind
from moyin.domain.parameter import Parameter
from moyin.jobs.ports import NamedFiles
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.renders import Templates
from moyin.jobs.protocol.request_to_domain import JobBody
from moyin.render.protocol.graph import find_file_texts, replace_texts
from moyin.system.heavy_work import run_aside

_StepT = TypeVar("_StepT", bound=wire.RenderStep)


class FileNameReplacer:
    """Replaces the names of an owner's files by artifact ids, and keeps all other names."""

    def __init__(self, files: NamedFiles) -> None:
        self._files = files

    async def replace_in_templates(
        self, owner: str, request: JobBody, templates: Templates
    ) -> JobBody:
        """Return the request with artifact ids in place of file names in image inputs of templates.

        Raises:
            InvalidRequest: a template does not exist.
        """
        if isinstance(request, wire.PipelineJob):
            steps = [
                await self._replace_in_step(owner, step, f"steps.{index}.", templates)
                if isinstance(step, wire.RenderStep)
                else step
                for index, step in enumerate(request.steps)
            ]
            return request.model_copy(update={"steps": steps})
        if isinstance(request, wire.RenderJob):
            return await self._replace_in_step(owner, request, "", templates)
        return request

    async def replace_in_graphs(self, owner: str, spec: JobSpec) -> JobSpec:
        """Return the job with artifact ids in place of file names in graphs that the client sent.

        Graphs of templates do not change.
        """
        resolved_texts = await run_aside(_resolve_file_texts, spec)
        if not resolved_texts:
            return spec
        files = await self._files.find_in_texts(owner, set(resolved_texts.values()))
        artifact_ids = {
            raw_text: f"artifact:{files[text].id}"
            for raw_text, text in resolved_texts.items()
            if text in files
        }
        if not artifact_ids:
            return spec
        return await run_aside(_replace_in_spec, spec, artifact_ids)

    async def _replace_in_step(
        self, owner: str, step: _StepT, prefix: str, templates: Templates
    ) -> _StepT:
        if step.template is None:
            return step
        parameters = templates(step.template, f"{prefix}template").parameters
        file_names = {
            value
            for inputs in _list_inputs(step)
            for name, value in inputs
            if _is_file_name(parameters.get(name), value)
        }
        files = await self._files.find_in_texts(owner, file_names) if file_names else {}
        return _replace_inputs(step, parameters, files) if files else step


def _list_inputs(step: wire.RenderStep) -> Iterator[Iterator[tuple[str, Any]]]:
    """Yield groups of a step's inputs, each input as a pair of name and value.

    The first group has the step's own ``inputs``. If the step has a ``batch``, there is a further
    group for each item of ``batch.inputs``, and for each input of ``batch.sweep`` with all of its
    values.
    """
    yield iter((step.inputs or {}).items())
    batch = step.batch if isinstance(step, wire.RenderJob) else None
    if batch is not None:
        # Larger batches are refused later, so the rest need not be read.
        for inputs in (batch.inputs or [])[:MAX_BATCH_CHILDREN]:
            yield iter(inputs.items())
        for key, values in (batch.sweep or {}).items():
            name = key.removeprefix("inputs.")
            yield ((name, value) for value in values[:MAX_BATCH_CHILDREN])


def _replace_inputs(
    step: _StepT, parameters: Mapping[str, Parameter], files: Mapping[str, Artifact]
) -> _StepT:
    def replace_value(name: str, value: Any) -> Any:
        is_file_name = _is_file_name(parameters.get(name), value) and value in files
        return files[value].id if is_file_name else value

    def replace_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: replace_value(name, value) for name, value in inputs.items()}

    update: dict[str, Any] = {}
    if step.inputs is not None:
        update["inputs"] = replace_values(step.inputs)
    batch = step.batch if isinstance(step, wire.RenderJob) else None
    if batch is not None:
        changes: dict[str, Any] = {}
        if batch.inputs is not None:
            changes["inputs"] = [replace_values(inputs) for inputs in batch.inputs]
        if batch.sweep is not None:
            changes["sweep"] = {
                key: [replace_value(key.removeprefix("inputs."), value) for value in values]
                for key, values in batch.sweep.items()
            }
        update["batch"] = batch.model_copy(update=changes)
    return step.model_copy(update=update)


def _is_file_name(parameter: Parameter | None, value: Any) -> bool:
    return parameter is not None and isinstance(value, str) and parameter.is_file_name(value)


def _has_client_graph(step: Step) -> bool:
    return step.kind is StepKind.RENDER and step.template is None


def _resolve_file_texts(spec: JobSpec) -> dict[str, str]:
    """Return the texts in the client's graphs that may name files, with the names that they mean."""
    client_steps = [step for step in spec.steps if _has_client_graph(step)]
    inputs = [list(_iterate_inputs(step.payload, spec.base is not None)) for step in client_steps]
    if client_steps and spec.base is not None:
        inputs.append(list(_iterate_inputs(spec.base, False)))
    return {
        raw_text: str(references.resolve_references(raw_text, ()))
        for raw_text in find_file_texts(inputs)
        if not references.has_references(raw_text)
    }


def _replace_in_spec(spec: JobSpec, artifact_ids: Mapping[str, str]) -> JobSpec:
    is_batch = spec.base is not None
    steps = tuple(
        replace(step, payload=_replace_in_graph(step.payload, is_batch, artifact_ids))
        if _has_client_graph(step)
        else step
        for step in spec.steps
    )
    base = None if spec.base is None else _replace_in_graph(spec.base, False, artifact_ids)
    return replace(spec, steps=steps, base=base)


def _iterate_inputs(graph: Mapping[str, Any], is_patch: bool) -> Iterator[Any]:
    """Yield the inputs of each node of a graph.

    Args:
        is_patch: True if ``graph`` is the patch of a batch's child, which has only the inputs that
            differ from the shared graph, directly below the node ids.
    """
    for node in graph.values():
        yield node if is_patch else node.get("inputs", {})


def _replace_in_graph(
    graph: Mapping[str, Any], is_patch: bool, artifact_ids: Mapping[str, str]
) -> dict[str, Any]:
    if is_patch:
        return {node_id: replace_texts(inputs, artifact_ids) for node_id, inputs in graph.items()}
    return {
        node_id: {**node, "inputs": replace_texts(node["inputs"], artifact_ids)}
        if "inputs" in node
        else node
        for node_id, node in graph.items()
    }
