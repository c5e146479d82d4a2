"""Converts graphs to ComfyUI's API format, and finds what a render pool lacks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.protocol.graph_conversion import (
    MAX_REPORTED,
    ConversionRequest,
    ConvertedGraph,
    LeftOutBody,
    find_missing_parts,
)
from moyin.domain.identity import Identity
from moyin.http.validation import parse_object, validate
from moyin.jobs.protocol.renders import check_graph_format
from moyin.render.protocol.editor_graph.conversion import convert
from moyin.render.protocol.editor_graph.document import is_editor_format
from moyin.system.heavy_work import HeavyWork, run_aside

_FIELD = "graph"


class GraphConverter:
    """Converts clients' graphs to the API format, and finds what a pool lacks for them.

    Args:
        work: processes conversions beside other requests, and shares them between tenants.
    """

    def __init__(self, admission: GraphAdmission, files: ComfyFiles, work: HeavyWork) -> None:
        self._admission = admission
        self._files = files
        self._work = work

    async def convert(self, caller: Identity, content: bytes) -> bytes:
        """Convert a graph; also list its parts that the pool lacks, and those that were left out.

        Args:
            content: the JSON of a `ConversionRequest`.

        Returns:
            The JSON of a `ConvertedGraph`.

        Raises:
            InvalidJson, InvalidRequest: the body or the graph is malformed, or there is no such
                pool.
            GraphTooLarge: the graph is larger than the caller's may be, also after the conversion.
            ServiceUnavailable: no pool has reported its nodes yet.
            Overloaded: too many conversions are waiting, or the wait took too long.
        """
        # However short it is, a graph may have many nodes with its subgraphs inlined.
        async with self._work.admit(caller.owner, math.inf):
            request = await run_aside(_parse_request, content)
            converted_graph = await self._convert(caller, request.graph, request.pool)
            return await run_aside(lambda: converted_graph.model_dump_json().encode())

    async def _convert(
        self, caller: Identity, graph: Mapping[str, Any], pool: str | None
    ) -> ConvertedGraph:
        pools = (await self._admission.find_pools(caller)).select(pool)
        graph = _unwrap_graph(graph)
        is_editor_graph = is_editor_format(graph)
        left_out_parts: list[LeftOutBody] = []
        if is_editor_graph:
            nodes = await self._admission.list_nodes(caller)
            graph, left_out_parts = await run_aside(_convert_editor_graph, graph, nodes)
        else:
            await run_aside(check_graph_format, graph, _FIELD)
        await self._admission.check_size(caller, [(_FIELD, graph)])
        if pool is None:
            pool = await pools.choose(graph)
        nodes = await self._admission.list_nodes(caller, pool)
        missing_parts, uploads = await run_aside(find_missing_parts, graph, nodes)
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


def _parse_request(content: bytes) -> ConversionRequest:
    return validate(ConversionRequest, parse_object(content))


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
