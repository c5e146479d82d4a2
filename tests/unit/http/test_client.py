from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.http.client import BodyTooLong, read_up_to

PIECES = [b"a" * 1_000, b"b", b"c" * 100_000]
SIZE = sum(map(len, PIECES))


@pytest.fixture
async def response() -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the response of a server that sends its body in pieces, with pauses between them."""

    async def respond_in_pieces(request: web.Request) -> web.StreamResponse:
        stream_response = web.StreamResponse()
        await stream_response.prepare(request)
        for piece in PIECES:
            await stream_response.write(piece)
            await asyncio.sleep(0.02)
        return stream_response

    app = web.Application()
    app.router.add_get("/", respond_in_pieces)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/")) as response,
    ):
        yield response


@pytest.mark.parametrize("limit", [SIZE, SIZE + 1, 10 * SIZE])
async def test_body_within_limit_is_read_whole(
    response: aiohttp.ClientResponse, limit: int
) -> None:
    assert await read_up_to(response, limit) == b"".join(PIECES)


@pytest.mark.parametrize("limit", [0, 1_000, SIZE - 1])
async def test_body_beyond_limit_is_refused(response: aiohttp.ClientResponse, limit: int) -> None:
    with pytest.raises(BodyTooLong):
        await read_up_to(response, limit)
