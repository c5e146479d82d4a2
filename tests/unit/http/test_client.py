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
    """Serve a body in two pieces; the reader starts before the second piece is sent."""

    async def respond_in_pieces(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for piece in PIECES:
            await answer.write(piece)
            await asyncio.sleep(0.02)
        return answer

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
