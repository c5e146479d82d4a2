"""`GraphChecks`: looks at the graphs of a job before it is accepted."""

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
from moyin.render.protocol.graph import artifact_ids, artifacts_missing, input_name, with_inputs
from moyin.store.artifacts import ArtifactStore

__all__ = ["GraphChecks"]

# Each takes a moment of a renderer's time; the others are looked at when they are rendered.
_MOST_VALIDATED = 64


class GraphChecks:
    """Asks which pools, nodes and files the submitter may have, and then ComfyUI itself.

    Args:
        pools: those that there are.
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

    async def admitted(self, submitter: Identity, spec: JobSpec) -> JobSpec:
        """The job, in pools that run the submitter's jobs.

        Raises:
            InvalidRequest: an unknown pool, or a node whose class is not known yet.
            InputNotFound: a graph names a file that the submitter does not have.
            NodeNotAllowed: a graph has a node that it may not have.
            InvalidGraph: a render pool refuses a graph.
        """
        spec = await self._with_pools(submitter, spec)
        await self._check_graphs(submitter, spec)
        return spec

    async def check_again(self, caller: Identity, spec: JobSpec) -> None:
        """Look whether the caller may still have the pools and nodes of a job that was accepted once.

        Raises:
            InvalidRequest: a pool does not run the caller's jobs.
            NodeNotAllowed: a graph has a node that it may not have.
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
            # Its files were the caller's, and who they are for has not changed.
            nodes: dict[str, Any] = {
                node_id: {"class_type": node.get("class_type"), "inputs": {}}
                for node_id, node in _part(spec, index).items()
                if isinstance(node, Mapping)
            }
            await self._guard.check(caller, step.pool, nodes, ())

    async def _with_pools(self, submitter: Identity, spec: JobSpec) -> JobSpec:
        """The job in pools that run the submitter's jobs. Others are not there for the submitter; who
        may not use the default pool has the first of the rest as the default."""
        if all(step.kind is not StepKind.RENDER for step in spec.steps):
            return spec
        offered = await self._guard.pools(submitter)
        pools = [pool for pool in self._pools if pool in offered]
        bound = len(pools) < len(self._pools)
        steps = []
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER or step.pool in pools:
                steps.append(step)
            elif step.pool == DEFAULT_POOL and pools and bound:
                steps.append(replace(step, pool=pools[0]))
            else:
                raise _no_pool(spec, index, step.pool, pools)
        return replace(spec, steps=tuple(steps))

    async def _check_graphs(self, submitter: Identity, spec: JobSpec) -> None:
        telling = set(_telling(spec))
        names: dict[str, Artifact] = {}
        for index, step in enumerate(spec.steps):
            if step.kind is not StepKind.RENDER:
                continue
            prefix = f"steps.{index}." if spec.kind == "pipeline" else ""
            whole = step.payload if spec.base is None else apply_patch(spec.base, step.payload)
            graph = whole
            if spec.base is not None and index > 0:
                # What all children have in common was looked at with the first.
                graph = {node: whole[node] for node in step.payload}
            try:
                known = await self._admit(submitter, step, graph, names)
            except (InputNotFound, NodeNotAllowed) as error:
                error.field = prefix + _place(step, graph, error.field or "")
                raise
            except InvalidRequest as error:
                error.field = prefix + (error.field or "")
                raise
            # What a reference will stand for is not known before the earlier step has run.
            if known and index in telling and not references.has_references(whole):
                graph = references.resolve(whole, ())
                await self._validator.validate(step.pool, _named(graph, names))

    async def _admit(
        self,
        submitter: Identity,
        step: Step,
        graph: Mapping[str, Any],
        names: dict[str, Artifact],
    ) -> bool:
        """Look at the nodes of a graph, and at the names of files in it that are known by now.

        Args:
            names: the submitter's artifacts that were found before; more come into it.

        Returns:
            Whether the pool's nodes are known.
        """
        graph = _settled(graph)
        for artifact_id in artifact_ids(graph) - names.keys():
            try:
                artifact = await self._artifacts.get(submitter.owner, artifact_id)
            except ArtifactNotFound:
                raise artifacts_missing(graph, artifact_id) from None
            if step.template is not None and not artifact.media_type.startswith("image/"):
                raise InvalidRequest(
                    f"artifact {artifact_id!r} is no picture but {artifact.media_type}",
                    field=_source(step, artifact_id),
                )
            names[artifact_id] = artifact
        own = {input_name(artifact) for artifact in names.values()}
        return await self._guard.check(submitter, step.pool, _named(graph, names), own)


def _no_pool(spec: JobSpec, index: int, pool: str, pools: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"there is no render pool {pool!r}; there are: {', '.join(pools)}",
        field="pool" if spec.kind != "pipeline" else f"steps.{index}.pool",
    )


def _part(spec: JobSpec, index: int) -> Mapping[str, Any]:
    """The graph of a step; of a batch's child after the first, what it has of its own."""
    payload: Mapping[str, Any] = spec.steps[index].payload
    if spec.base is None:
        return payload
    whole = apply_patch(spec.base, payload)
    return whole if index == 0 else {node: whole[node] for node in payload}


def _telling(spec: JobSpec) -> list[int]:
    """The steps to look at; of a batch those between which every value of every input occurs.

    Of seeds there may be hundreds, one as good as the other: the first and the last will do.
    """
    if spec.base is None:
        return list(range(len(spec.steps)))
    chosen = [0, len(spec.steps) - 1]
    seen: set[tuple[str, bytes]] = set()
    for index, step in enumerate(spec.steps):
        pairs = {(n, to_json(v)) for n, v in step.inputs.items() if not n.endswith("seed")}
        if pairs - seen:
            seen |= pairs
            chosen.append(index)
    return sorted(set(chosen))[:_MOST_VALIDATED]


def _named(graph: Mapping[str, Any], names: Mapping[str, Artifact]) -> Mapping[str, Any]:
    """The graph with its input files under the names that a renderer will give them."""
    if not names:
        return graph
    return with_inputs(graph, {key: input_name(artifact) for key, artifact in names.items()})


def _settled(graph: Mapping[str, Any]) -> Mapping[str, Any]:
    """The graph without the values that an earlier step will give.

    Raises:
        InvalidRequest: the class of a node is one of them.
    """
    if not references.has_references(graph):
        settled: Mapping[str, Any] = references.resolve(graph, ())
        return settled
    kept = {}
    for node_id, node in graph.items():
        if references.has_references(node["class_type"]):
            raise InvalidRequest(
                f"the class_type of node {node_id[:64]!r} must not refer to an earlier step",
                field=f"workflow.{node_id[:64]}.class_type",
            )
        inputs = node.get("inputs", {})
        sure = {
            name: value for name, value in inputs.items() if not references.has_references(value)
        }
        kept[node_id] = {**node, "inputs": references.resolve(sure, ())}
    return kept


def _source(step: Step, artifact_id: str) -> str:
    """Where in the request the artifact was named."""
    if step.template is None:
        return "workflow"
    named = (name for name, value in step.inputs.items() if artifact_id in str(value))
    return f"inputs.{next(named, '')}".rstrip(".")


def _place(step: Step, graph: Mapping[str, Any], place: str) -> str:
    """Where in the request that was named which lies at ``place`` of the graph."""
    if step.template is None:
        return f"workflow.{place}".rstrip(".")
    node_id, _, name = place.partition(".inputs.")
    value = graph.get(node_id, {}).get("inputs", {}).get(name) if name else None
    if name:
        for key, chosen in step.inputs.items():
            if chosen == value or f"artifact:{chosen}" == value:
                return f"inputs.{key}"
    return "template"
