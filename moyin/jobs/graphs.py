"""Defines `GraphChecks`, which checks the graphs of a job before it is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from moyin.domain import references
from moyin.domain.artifact import Artifact
from moyin.domain.batch import apply_patch
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.errors import ArtifactNotFound, InputNotFound, InvalidRequest, NodeNotAllowed
from moyin.jobs.ports import GraphGuard, GraphValidator
from moyin.jobs.protocol.renders import DEFAULT_POOL
from moyin.render.protocol.graph import (
    find_artifact_ids,
    make_input_name,
    make_missing_error,
    replace_inputs,
)
from moyin.store.artifacts import ArtifactStore

__all__ = ["GraphChecks"]

# Each validation takes some of a renderer's time; further children are validated when they render.
_MAX_VALIDATED = 64


class GraphChecks:
    """Checks the pools, nodes and files of graphs, then validates the graphs with ComfyUI.

    Args:
        pools: the names of all render pools.
    """

    def __init__(
        self,
        *,
        artifacts: ArtifactStore,
        validator: GraphValidator,
        guard: GraphGuard,
        pools: Sequence[str],
    ) -> None:
        self._artifacts = artifacts
        self._validator = validator
        self._guard = guard
        self._pools = tuple(pools)

    async def admit(self, submitter: Identity, spec: JobSpec) -> JobSpec:
        """Check a new job and return it with pools that run the submitter's jobs.

        Raises:
            InvalidRequest: a pool is unknown, or a node's class is not known yet.
            InputNotFound: a graph names a file that the submitter does not have.
            NodeNotAllowed: a graph has a node that is not allowed.
            InvalidGraph: a render pool refuses a graph.
        """
        spec = await self._with_pools(submitter, spec)
        await self._check_graphs(submitter, spec)
        return spec

    async def recheck(self, caller: Identity, spec: JobSpec) -> None:
        """Check that the caller may still use the pools and nodes of an accepted job.

        Raises:
            InvalidRequest: a pool does not run the caller's jobs.
            NodeNotAllowed: a graph has a node that is not allowed.
        """
        if all(step.kind is not StepKind.RENDER for step in spec.steps):
            return
        offered = await self._guard.pools(caller)
        pools = [pool for pool in self._pools if pool in offered]
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER:
                continue
            if step.pool not in pools:
                raise _no_pool(spec, index, step.pool, pools)
            # Its files need no check: they belong to the tenant, which has not changed.
            nodes: dict[str, Any] = {
                node_id: {"class_type": node.get("class_type"), "inputs": {}}
                for node_id, node in _own_nodes(spec, index).items()
                if isinstance(node, Mapping)
            }
            await self._guard.check(caller, step.pool, nodes, ())

    async def _with_pools(self, submitter: Identity, spec: JobSpec) -> JobSpec:
        """Return the job with pools that run the submitter's jobs.

        A submitter who must not use the default pool gets the first allowed pool instead.
        """
        if all(step.kind is not StepKind.RENDER for step in spec.steps):
            return spec
        offered = await self._guard.pools(submitter)
        pools = [pool for pool in self._pools if pool in offered]
        is_restricted = len(pools) < len(self._pools)
        steps = []
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER or step.pool in pools:
                steps.append(step)
            elif step.pool == DEFAULT_POOL and pools and is_restricted:
                steps.append(replace(step, pool=pools[0]))
            else:
                raise _no_pool(spec, index, step.pool, pools)
        return replace(spec, steps=tuple(steps))

    async def _check_graphs(self, submitter: Identity, spec: JobSpec) -> None:
        """Check every graph, and validate the representative ones with ComfyUI."""
        representative = set(representative_steps(spec))
        artifacts: dict[str, Artifact] = {}
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER:
                continue
            prefix = f"steps.{index}." if spec.kind == "pipeline" else ""
            full_graph = step.payload if spec.base is None else apply_patch(spec.base, step.payload)
            graph = full_graph
            if spec.base is not None and index > 0:
                # The nodes that all children share were checked with the first child.
                graph = {node: full_graph[node] for node in step.payload}
            try:
                is_known = await self._check_graph(submitter, step, graph, artifacts)
            except (InputNotFound, NodeNotAllowed) as error:
                error.field = prefix + _request_field(step, graph, error.field or "")
                raise
            except InvalidRequest as error:
                error.field = prefix + (error.field or "")
                raise
            # The value of a reference is unknown until the earlier step has run.
            if is_known and index in representative and not references.has_references(full_graph):
                graph = references.resolve(full_graph, ())
                await self._validator.validate(step.pool, _with_file_names(graph, artifacts))

    async def _check_graph(
        self,
        submitter: Identity,
        step: Step,
        graph: Mapping[str, Any],
        artifacts: dict[str, Artifact],
    ) -> bool:
        """Check the nodes and the file names of a graph, except those that references will give.

        Args:
            artifacts: a cache of the submitter's artifacts by id, which this fills.

        Returns:
            True if the pool's node classes are known.
        """
        graph = _without_references(graph)
        for artifact_id in find_artifact_ids(graph) - artifacts.keys():
            try:
                artifact = await self._artifacts.get(submitter.owner, artifact_id)
            except ArtifactNotFound:
                raise make_missing_error(graph, artifact_id) from None
            if step.template is not None and not artifact.media_type.startswith("image/"):
                raise InvalidRequest(
                    f"artifact {artifact_id!r} must be an image; its type is {artifact.media_type}",
                    field=_artifact_field(step, artifact_id),
                )
            artifacts[artifact_id] = artifact
        own = {make_input_name(artifact) for artifact in artifacts.values()}
        named = _with_file_names(graph, artifacts)
        return await self._guard.check(submitter, step.pool, named, own)


def _no_pool(spec: JobSpec, index: int, pool: str, pools: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"there is no render pool {pool!r}; available pools: {', '.join(pools)}",
        field="pool" if spec.kind != "pipeline" else f"steps.{index}.pool",
    )


def _own_nodes(spec: JobSpec, index: int) -> Mapping[str, Any]:
    """Return the graph of a step; of later children of a batch, only the nodes that they change."""
    payload: Mapping[str, Any] = spec.steps[index].payload
    if spec.base is None:
        return payload
    full_graph = apply_patch(spec.base, payload)
    return full_graph if index == 0 else {node: full_graph[node] for node in payload}


def representative_steps(spec: JobSpec) -> list[int]:
    """Return the indexes of the steps to validate; of a batch, enough to cover every input value.

    Seeds are ignored: there may be hundreds, all equally valid. The first and last child are
    always included.
    """
    if spec.base is None:
        return list(range(len(spec.steps)))
    indexes = [0, len(spec.steps) - 1]
    seen: set[tuple[str, bytes]] = set()
    for index, step in enumerate(spec.steps):
        pairs = {(n, to_json(v)) for n, v in step.inputs.items() if not n.endswith("seed")}
        if pairs - seen:
            seen |= pairs
            indexes.append(index)
    return sorted(set(indexes))[:_MAX_VALIDATED]


def _with_file_names(
    graph: Mapping[str, Any], artifacts: Mapping[str, Artifact]
) -> Mapping[str, Any]:
    """Replace artifacts in the graph by the file names that a renderer will give them."""
    if not artifacts:
        return graph
    return replace_inputs(
        graph, {key: make_input_name(artifact) for key, artifact in artifacts.items()}
    )


def _without_references(graph: Mapping[str, Any]) -> Mapping[str, Any]:
    """Remove the inputs whose values come from an earlier step.

    Raises:
        InvalidRequest: the class of a node is such a value.
    """
    if not references.has_references(graph):
        resolved: Mapping[str, Any] = references.resolve(graph, ())
        return resolved
    nodes = {}
    for node_id, node in graph.items():
        if references.has_references(node["class_type"]):
            raise InvalidRequest(
                f"the class_type of node {node_id[:64]!r} must not refer to an earlier step",
                field=f"workflow.{node_id[:64]}.class_type",
            )
        inputs = node.get("inputs", {})
        fixed = {
            name: value for name, value in inputs.items() if not references.has_references(value)
        }
        nodes[node_id] = {**node, "inputs": references.resolve(fixed, ())}
    return nodes


def _artifact_field(step: Step, artifact_id: str) -> str:
    """Return the request's field that names the artifact."""
    if step.template is None:
        return "workflow"
    names = (name for name, value in step.inputs.items() if artifact_id in str(value))
    return f"inputs.{next(names, '')}".rstrip(".")


def _request_field(step: Step, graph: Mapping[str, Any], place: str) -> str:
    """Return the request's field for a place in the graph, such as ``3.inputs.image``."""
    if step.template is None:
        return f"workflow.{place}".rstrip(".")
    node_id, _, name = place.partition(".inputs.")
    value = graph.get(node_id, {}).get("inputs", {}).get(name) if name else None
    if name:
        for key, input_value in step.inputs.items():
            if value in (input_value, f"artifact:{input_value}"):
                return f"inputs.{key}"
    return "template"
