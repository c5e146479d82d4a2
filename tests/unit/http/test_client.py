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
    """Its body comes in pieces, and the reader is there before the second."""

    async def give(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for piece in PIECES:
            await answer.write(piece)
            await asyncio.sleep(0.02)
        return answer

    app = web.Application()
    app.router.add_get("/", give)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/")) as response,
    ):
        yield response


@pytest.mark.parametrize("limit", [SIZE, SIZE + 1, 10 * SIZE])
async def test_a_body_is_read_to_its_end(response: aiohttp.ClientResponse, limit: int) -> None:
    assert await read_up_to(response, limit) == b"".join(PIECES)


@pytest.mark.parametrize("limit", [0, 1_000, SIZE - 1])
async def test_a_longer_one_is_not(response: aiohttp.ClientResponse, limit: int) -> None:
    with pytest.raises(BodyTooLong):
        await read_up_to(response, limit)
