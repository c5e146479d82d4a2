"""Defines `GraphChecker`, which checks the graphs of a job before the job is accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from moyin.domain import references
from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec, Step, StepKind, apply_batch_patch
from moyin.errors import (
    ArtifactNotFound,
    InputNotFound,
    InvalidGraph,
    InvalidRequest,
    NodeNotAllowed,
)
from moyin.jobs.ports import GraphGuard, GraphValidator
from moyin.render.protocol.graph import (
    find_artifact_ids,
    make_input_name,
    make_missing_error,
    replace_inputs,
)
from moyin.render.protocol.node_errors import MAX_NODES, summarize_node_errors
from moyin.store.artifacts import ArtifactStore
from moyin.system.heavy_work import run_aside

# The most children of a batch that are validated at submission, because each takes a renderer's
# time.
_MAX_VALIDATED = 64
_MAX_VALIDATED_NODES = 10_000


class GraphChecker:
    """Checks the pools, nodes and files of graphs, then validates the graphs with ComfyUI."""

    def __init__(
        self,
        *,
        artifacts: ArtifactStore,
        validator: GraphValidator,
        guard: GraphGuard,
    ) -> None:
        self._artifacts = artifacts
        self._validator = validator
        self._guard = guard

    async def check_sizes(self, submitter: Identity, spec: JobSpec) -> None:
        """Check that the graphs of a job are within the submitter's bounds together.

        Raises:
            GraphTooLarge: a bound is exceeded; the error names the bound.
            InvalidGraph: the links of a graph form a circle; the error names its nodes.
        """
        if spec.base is not None:
            patches = [step.payload for step in spec.steps]
            await self._guard.check_size(submitter, [("workflow", spec.base)], patches)
            return
        prefixes = [
            f"steps.{i}." if spec.kind == "pipeline" else "" for i in range(len(spec.steps))
        ]
        graphs = [
            (f"{prefix}workflow" if step.template is None else f"{prefix}template", step.payload)
            for prefix, step in zip(prefixes, spec.steps, strict=True)
            if step.kind is StepKind.RENDER
        ]
        if graphs:
            await self._guard.check_size(submitter, graphs)

    async def check_new_job(
        self, submitter: Identity, spec: JobSpec, *, is_strict: bool = False
    ) -> tuple[JobSpec, Mapping[str, Any]]:
        """Check the graphs of a new job.

        Args:
            is_strict: True to refuse a graph that has an invalid output beside valid ones.

        Returns:
            The job with a permitted pool for each render, and its `Job.node_errors`.

        Raises:
            InvalidRequest: a render pool is unknown or does not run the submitter's jobs, or the
                ``class_type`` of a node is a reference to an earlier step.
            InputNotFound: a graph names a file that the submitter does not have.
            NodeNotAllowed: a graph has a node that is not allowed.
            InvalidGraph: ComfyUI's validation rejects a graph, or, if ``is_strict`` is True, an
                output of it.
        """
        spec = await self._assign_pools(submitter, spec)
        return spec, await self._check_graphs(submitter, spec, is_strict=is_strict)

    async def check_retried_job(self, caller: Identity, spec: JobSpec) -> None:
        """Check that the caller may still use the pools and nodes of an accepted job.

        Raises:
            InvalidRequest: a render pool does not run the caller's jobs.
            GraphTooLarge: the graphs are larger than the caller's may be by now.
            NodeNotAllowed: a graph has a node that is not allowed.
        """
        if all(step.kind is not StepKind.RENDER for step in spec.steps):
            return
        await self.check_sizes(caller, spec)
        pools = await self._guard.find_pools(caller)
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER:
                continue
            with _naming_pool_field(spec, index):
                pools.require(step.pool)
            # The files need no check, because they belong to the tenant, which has not changed.
            nodes = await run_aside(_list_classes, spec, index)
            await self._guard.check_graph(caller, step.pool, nodes, ())

    async def _assign_pools(self, submitter: Identity, spec: JobSpec) -> JobSpec:
        """Return the job with a permitted pool for each render.

        If the submitter has no pool of the default's name, the first permitted pool replaces it.
        """
        if all(step.kind is not StepKind.RENDER for step in spec.steps):
            return spec
        pools = await self._guard.find_pools(submitter)
        steps = []
        for index, step in enumerate(spec.steps):
            if step.kind is StepKind.RENDER:
                with _naming_pool_field(spec, index):
                    step = replace(step, pool=pools.assign(step.pool))
            steps.append(step)
        return replace(spec, steps=tuple(steps))

    async def _check_graphs(
        self, submitter: Identity, spec: JobSpec, *, is_strict: bool
    ) -> Mapping[str, Any]:
        """Check every graph of the job, and let ComfyUI validate the representative graphs.

        Returns:
            The invalid nodes that ComfyUI reports for graphs that it accepts.
        """
        node_errors: dict[str, Any] = {}
        representative_indexes = set(select_representative_steps(spec))
        artifacts: dict[str, Artifact] = {}
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER:
                continue
            prefix = f"steps.{index}." if spec.kind == "pipeline" else ""
            # The nodes that all children share are checked with the first child.
            graph = await run_aside(_get_changed_nodes, spec, index)
            try:
                is_fully_checked = await self._check_graph(submitter, step, graph, artifacts)
            except (InputNotFound, InvalidGraph, NodeNotAllowed) as error:
                error.field = prefix + _find_request_field(step, graph, error.field or "")
                raise
            except InvalidRequest as error:
                error.field = prefix + (error.field or "")
                raise
            # Graphs with references are not validated, because the values are unknown until earlier
            # steps run.
            if not is_fully_checked or index not in representative_indexes:
                continue
            graph_to_validate = await run_aside(_build_final_graph, spec, index, artifacts)
            if graph_to_validate is None:
                continue
            response = await self._validator.validate(
                step.pool, graph_to_validate, owner=submitter.owner
            )
            step_errors = summarize_node_errors(response.get("node_errors"))
            if step_errors and is_strict:
                raise _new_strict_error(f"{prefix}{_get_graph_member(step)}", response)
            for node_id, node_error in step_errors.items():
                if len(node_errors) < MAX_NODES:
                    node_errors.setdefault(prefix + node_id, node_error)
        return node_errors

    async def _check_graph(
        self,
        submitter: Identity,
        step: Step,
        graph: Mapping[str, Any],
        artifacts: dict[str, Artifact],
    ) -> bool:
        """Check the files and nodes of a graph.

        Args:
            artifacts: the artifacts of graphs that were checked before, by id; those of this graph
                are added.

        Returns:
            True, or False if inputs can't be checked because the pool's node classes are unknown.

        Raises:
            InputNotFound: the graph names a file that the submitter does not have.
            NodeNotAllowed: the graph has a node that is not allowed.
            InvalidRequest: an input of a template must be an image and is not, or the
                ``class_type`` of a node is a reference to an earlier step.
        """
        graph = await run_aside(_remove_references, graph)
        for artifact_id in await run_aside(find_artifact_ids, graph) - artifacts.keys():
            try:
                artifact = await self._artifacts.get(submitter.owner, artifact_id)
            except ArtifactNotFound:
                raise make_missing_error(graph, artifact_id) from None
            if step.template is not None and not artifact.media_type.startswith("image/"):
                raise InvalidRequest(
                    f"artifact {artifact_id!r} must be an image; its type is {artifact.media_type}",
                    field=_find_artifact_field(step, artifact_id),
                )
            artifacts[artifact_id] = artifact
        own_names = {make_input_name(artifact) for artifact in artifacts.values()}
        graph_with_files = await run_aside(_replace_artifacts, graph, artifacts)
        return await self._guard.check_graph(submitter, step.pool, graph_with_files, own_names)


@contextmanager
def _naming_pool_field(spec: JobSpec, index: int) -> Iterator[None]:
    """Set the field of an InvalidRequest to the member of the request with the step's pool."""
    try:
        yield
    except InvalidRequest as error:
        error.field = "pool" if spec.kind != "pipeline" else f"steps.{index}.pool"
        raise


def _get_changed_nodes(spec: JobSpec, index: int) -> Mapping[str, Any]:
    """Return the nodes of a step's graph, without those that the first child of its batch has.

    For the second and later children of a batch, these are only the nodes that the child's patch
    changes. For any other step, these are all nodes.
    """
    payload: Mapping[str, Any] = spec.steps[index].payload
    if spec.base is None:
        return payload
    base = spec.base if index == 0 else {node: spec.base[node] for node in payload}
    return apply_batch_patch(base, payload)


def _list_classes(spec: JobSpec, index: int) -> Mapping[str, Any]:
    """Return the nodes of `_get_changed_nodes` without their inputs."""
    return {
        node_id: {"class_type": node.get("class_type"), "inputs": {}}
        for node_id, node in _get_changed_nodes(spec, index).items()
        if isinstance(node, Mapping)
    }


def _build_final_graph(
    spec: JobSpec, index: int, artifacts: Mapping[str, Artifact]
) -> Mapping[str, Any] | None:
    """Return a step's graph as ComfyUI gets it, or None if it needs the output of another step."""
    payload = spec.steps[index].payload
    graph = payload if spec.base is None else apply_batch_patch(spec.base, payload)
    if references.has_references(graph):
        return None
    return _replace_artifacts(references.resolve_references(graph, ()), artifacts)


def select_representative_steps(spec: JobSpec) -> list[int]:
    """Return the indexes of the steps whose graphs ComfyUI validates.

    These are all steps, or of a batch as many children as are needed so that each input value,
    except for seeds, occurs in one of them. The first and the last child are always included, and
    the number is limited.
    """
    if spec.base is None:
        return list(range(len(spec.steps)))
    indexes = [0, len(spec.steps) - 1]
    covered_values: set[tuple[str, bytes]] = set()
    for index, step in enumerate(spec.steps):
        pairs = {(n, to_json(v)) for n, v in step.inputs.items() if not n.endswith("seed")}
        if pairs - covered_values:
            covered_values |= pairs
            indexes.append(index)
    # Large graphs are validated in fewer children, because each takes ComfyUI's time again.
    max_validated = max(1, min(_MAX_VALIDATED, _MAX_VALIDATED_NODES // max(1, len(spec.base))))
    return sorted(set(indexes))[:max_validated]


def _replace_artifacts(
    graph: Mapping[str, Any], artifacts: Mapping[str, Artifact]
) -> Mapping[str, Any]:
    """Return the graph with each reference to an artifact replaced by its file name in ComfyUI.

    Args:
        artifacts: the artifacts by id.
    """
    if not artifacts:
        return graph
    return replace_inputs(
        graph, {key: make_input_name(artifact) for key, artifact in artifacts.items()}
    )


def _remove_references(graph: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the graph without the inputs that refer to earlier steps.

    Raises:
        InvalidRequest: the ``class_type`` of a node is a reference to an earlier step.
    """
    if not references.has_references(graph):
        resolved_graph: Mapping[str, Any] = references.resolve_references(graph, ())
        return resolved_graph
    nodes = {}
    for node_id, node in graph.items():
        if references.has_references(node["class_type"]):
            raise InvalidRequest(
                f"the class_type of node {node_id[:64]!r} must not refer to an earlier step",
                field=f"workflow.{node_id[:64]}.class_type",
            )
        inputs = node.get("inputs", {})
        plain_inputs = {
            name: value for name, value in inputs.items() if not references.has_references(value)
        }
        nodes[node_id] = {**node, "inputs": references.resolve_references(plain_inputs, ())}
    return nodes


def _find_artifact_field(step: Step, artifact_id: str) -> str:
    """Return the field of the request that names the artifact, such as ``inputs.image``."""
    if step.template is None:
        return "workflow"
    names = (name for name, value in step.inputs.items() if artifact_id in str(value))
    return f"inputs.{next(names, '')}".rstrip(".")


def _get_graph_member(step: Step) -> str:
    """Return the member of the step's request from which its graph comes."""
    return "workflow" if step.template is None else "template"


def _new_strict_error(field: str, response: Mapping[str, Any]) -> InvalidGraph:
    """Return the error for a graph of a strict job that has invalid outputs.

    Args:
        field: the field of the request that has the graph.
        response: ComfyUI's response to the graph, which has ``node_errors``.
    """
    node_errors = response["node_errors"]
    node_id, node_error = next(iter(summarize_node_errors(node_errors).items()))
    error = next(iter(node_error["errors"]), {"message": "the node is invalid", "details": ""})
    return InvalidGraph(
        f"{field}: node {node_id!r} ({node_error['class_type']}): {error['message']}: "
        f"{error['details']}; correct it, or omit `strict` to render the valid outputs only",
        field=field,
        details={
            "error": {
                "type": "prompt_outputs_failed_validation",
                "message": "Prompt outputs failed validation",
                "details": "",
                "extra_info": {},
            },
            "node_errors": node_errors,
        },
    )


def _find_request_field(step: Step, graph: Mapping[str, Any], graph_path: str) -> str:
    """Return the field of the request that set a value in the graph.

    Args:
        graph_path: the path of the value in the graph, such as ``3.inputs.image``.
    """
    if step.template is None:
        return f"workflow.{graph_path}".rstrip(".")
    node_id, _, name = graph_path.partition(".inputs.")
    graph_value = graph.get(node_id, {}).get("inputs", {}).get(name) if name else None
    if name:
        for key, input_value in step.inputs.items():
            if graph_value in (input_value, f"artifact:{input_value}"):
                return f"inputs.{key}"
    return "template"
