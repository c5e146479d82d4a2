"""Converts graphs to ComfyUI's API format, and finds what a render pool lacks for them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.protocol.graph_conversion import (
    MAX_REPORTED,
    ConvertedGraph,
    LeftOutBody,
    find_missing_parts,
)
from moyin.domain.identity import Identity
from moyin.errors import InvalidRequest
from moyin.jobs.protocol.renders import check_graph_format
from moyin.render.protocol.editor_graph.conversion import convert
from moyin.render.protocol.editor_graph.document import MAX_NODES, is_editor_format
from moyin.system.slots import Slots

_FIELD = "graph"
# The largest graphs take seconds of processor time, which the replica's event loop needs, too.
_MAX_CONVERSIONS = 2
_MAX_WAITING = 32
_PATIENCE_SECONDS = 30.0
_MEAN_SECONDS = 0.1


class GraphConverter:
    """Converts clients' graphs to the API format, and finds what a pool lacks for them.

    Args:
        slots: limits the concurrent conversions, and shares them fairly between tenants.
    """

    def __init__(
        self, admission: GraphAdmission, files: ComfyFiles, slots: Slots | None = None
    ) -> None:
        self._admission = admission
        self._files = files
        # One slot is always left to other tenants.
        self._slots = slots or Slots(
            _MAX_CONVERSIONS,
            max_waiting=_MAX_WAITING,
            patience=_PATIENCE_SECONDS,
            reserve_seconds=math.inf,
        )

    async def convert(
        self, caller: Identity, graph: Mapping[str, Any], pool: str | None
    ) -> ConvertedGraph:
        """Convert a graph; also list its parts that the pool lacks, and those that were left out.

        Args:
            graph: a graph in the editor's or the API format, or an object with a graph as its
                ``prompt`` or ``workflow``, such as the body of ``POST /prompt``.
            pool: the pool that is to render it; None chooses the pool that a job would get.

        Raises:
            InvalidRequest: the graph is malformed or too large, or there is no such pool.
            ServiceUnavailable: no pool has reported its nodes yet.
            Overloaded: too many conversions are waiting, or the wait took too long.
        """
        if not self._slots.try_acquire(caller.owner):
            await self._slots.wait(caller.owner, _PATIENCE_SECONDS, _MEAN_SECONDS)
        try:
            return await self._convert(caller, graph, pool)
        finally:
            self._slots.release(caller.owner)

    async def _convert(
        self, caller: Identity, graph: Mapping[str, Any], pool: str | None
    ) -> ConvertedGraph:
        pools = (await self._admission.find_pools(caller)).select(pool)
        graph = _unwrap_graph(graph)
        is_editor_graph = is_editor_format(graph)
        left_out_parts: list[LeftOutBody] = []
        if is_editor_graph:
            nodes = await self._admission.list_nodes(caller)
            graph, left_out_parts = await asyncio.to_thread(_convert_editor_graph, graph, nodes)
        else:
            check_graph_format(graph, _FIELD)
            if len(graph) > MAX_NODES:
                raise InvalidRequest(
                    f"the graph has too many nodes: at most {MAX_NODES} are allowed", field=_FIELD
                )
        if pool is None:
            pool = await pools.choose(graph)
        nodes = await self._admission.list_nodes(caller, pool)
        missing_parts, uploads = await asyncio.to_thread(find_missing_parts, graph, nodes)
        upload_names = {upload.value for upload in uploads}
        found_files = (
            await self._files.find_in_texts(caller.owner, upload_names) if upload_names else {}
        )
        missing_parts.files = [upload for upload in uploads if upload.value not in found_files][
            :MAX_REPORTED
        ]
        return ConvertedGraph(
            format="editor" if is_editor_graph else "api",
            graph=dict(graph),
            pool=pool,
            missing=missing_parts,
            left_out=left_out_parts,
        )


def _convert_editor_graph(
    graph: Mapping[str, Any], nodes: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[LeftOutBody]]:
    # Dates in file names are taken from this machine's clock; the editor uses the browser's.
    result = convert(graph, nodes, now=datetime.now(UTC), field=_FIELD)
    return result.graph, [LeftOutBody.model_validate(item) for item in result.left_out]


def _unwrap_graph(graph: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the graph in a body of ``POST /prompt`` or ``POST /jobs``, or the graph itself."""
    for member in ("prompt", "workflow"):
        inner_graph = graph.get(member)
        if isinstance(inner_graph, Mapping) and "class_type" not in inner_graph:
            return inner_graph
    return graph
