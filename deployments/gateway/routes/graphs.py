"""Defines the route that converts graphs to ComfyUI's API format."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.gateway.graph_bodies import read_graph_body
from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import context
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.graph_conversion import GraphConverter
from moyin.comfy_api.protocol.graph_conversion import ConversionRequest, ConvertedGraph


def new_graph_routes(converter: GraphConverter, admission: GraphAdmission) -> APIRouter:
    """Return the route that takes graphs in the format that ComfyUI's editor saves."""
    router = APIRouter(tags=["jobs"])

    @router.post(
        "/graphs/convert",
        name="convert",
        summary="Convert a graph to the API format",
        response_model=ConvertedGraph,
        openapi_extra=describe_body(ConversionRequest.model_json_schema()),
    )
    async def convert_graph(request: Request) -> Response:
        """Return a graph in ComfyUI's API format, which `POST /jobs` renders.

        The graph may be in the format that ComfyUI's editor saves. The response also lists what
        the render pool lacks for the graph, and what was left out of it and why.
        """
        caller = context(request.scope).caller
        content = await read_graph_body(request, admission.get_bounds(caller))
        return Response(await converter.convert(caller, content), media_type="application/json")

    return router
