"""Reads the bodies of requests that have one graph, up to the bound of the caller's graphs."""

from __future__ import annotations

from fastapi import Request

from moyin.domain.graph_bounds import GraphBounds

_FIELD = "body"


async def read_graph_body(request: Request, bounds: GraphBounds) -> bytes:
    """Return the body of a request, which may have as many bytes as a graph.

    A larger body is refused when the client announces it, or else as soon as the bytes exceed the
    bound, so that it is never held in memory.

    Raises:
        GraphTooLarge: the body has too many bytes.
    """
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and "content-encoding" not in request.headers:
        bounds.check("bytes", int(content_length), _FIELD)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        bounds.check("bytes", size, _FIELD)
        chunks.append(chunk)
    return b"".join(chunks)
