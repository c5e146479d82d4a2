"""Serves the paths of OpenAI, Anthropic and Ollama.

A request with a member that its API format does not have gets status 400, so that a test fails if
Moyin forwards members of another protocol.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.integration.text.wires import anthropic, ollama, openai
from tests.integration.text.wires.script import PICTURE, PROMPT, choose_answer


class WireServer:
    """A server of all three API formats.

    Attributes:
        url: the URL without a path.
        requests: path and body of every request, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, Any]]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[WireServer]:
        """Serve on a free loopback port during the block."""
        app = web.Application()
        app.router.add_get("/v1/models", self._answer_empty_list)
        app.router.add_get("/api/version", self._answer_empty_list)
        app.router.add_get("/api/ps", self._answer_resident_models)
        app.router.add_get("/picture.png", self._answer_picture)
        app.router.add_post("/v1/chat/completions", self._answer_openai)
        app.router.add_post("/v1/messages", self._answer_anthropic)
        app.router.add_post("/v1/messages/count_tokens", self._count_tokens)
        app.router.add_post("/api/chat", self._answer_ollama)
        app.router.add_post("/api/generate", self._answer_ollama)
        app.router.add_post("/v1/embeddings", self._answer_openai_embeddings)
        app.router.add_post("/api/embed", self._answer_ollama_embeddings)
        self._add_routes(app)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def _add_routes(self, app: web.Application) -> None:
        """Add further routes; subclasses override this method."""

    async def _answer_empty_list(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [], "version": "0.13.0"})

    async def _answer_resident_models(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "up", "model": "up", "size_vram": 1}]})

    async def _answer_picture(self, _: web.Request) -> web.Response:
        return web.Response(body=PICTURE, content_type="image/png")

    async def _read_body(
        self, request: web.Request, known_members: frozenset[str] | None
    ) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append((request.path, body))
        if known_members is not None and (unknown_members := body.keys() - known_members):
            error_body = json.dumps(
                {"error": {"message": f"unknown members: {sorted(unknown_members)}"}}
            )
            raise web.HTTPBadRequest(text=error_body, content_type="application/json")
        return body

    async def _answer_openai(self, request: web.Request) -> web.StreamResponse:
        body = await self._read_body(request, openai.KNOWN)
        wire_answer = choose_answer(openai.parse_request(body))
        if not body.get("stream"):
            return web.json_response(openai.build_answer(wire_answer))
        includes_usage = (body.get("stream_options") or {}).get("include_usage", False)
        return await _send_stream(
            request,
            "text/event-stream",
            openai.stream_answer(wire_answer, with_usage=includes_usage),
        )

    async def _answer_anthropic(self, request: web.Request) -> web.StreamResponse:
        body = await self._read_body(request, anthropic.KNOWN)
        wire_answer = choose_answer(anthropic.parse_request(body))
        if not body.get("stream"):
            return web.json_response(anthropic.build_answer(wire_answer))
        return await _send_stream(
            request, "text/event-stream", anthropic.stream_answer(wire_answer)
        )

    async def _answer_ollama(self, request: web.Request) -> web.StreamResponse:
        is_chat = request.path == "/api/chat"
        body = await self._read_body(request, ollama.KNOWN if is_chat else ollama.GENERATE_KNOWN)
        wire_answer = choose_answer(
            ollama.parse_request(body) if is_chat else ollama.parse_generate_request(body)
        )
        if body.get("stream") is False:
            return web.json_response(ollama.build_answer(wire_answer, is_chat=is_chat))
        return await _send_stream(
            request, "application/x-ndjson", ollama.stream_answer(wire_answer, is_chat=is_chat)
        )

    async def _count_tokens(self, request: web.Request) -> web.Response:
        await self._read_body(request, anthropic.KNOWN - {"max_tokens", "stream"})
        return web.json_response({"input_tokens": PROMPT})

    async def _answer_openai_embeddings(self, request: web.Request) -> web.Response:
        known_members = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
        body = await self._read_body(request, known_members)
        vectors = _make_vectors(body["input"], body.get("dimensions"))
        rows = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": PROMPT, "total_tokens": PROMPT}
        return web.json_response({"object": "list", "data": rows, "model": "up", "usage": usage})

    async def _answer_ollama_embeddings(self, request: web.Request) -> web.Response:
        known_members = frozenset(
            {"model", "input", "truncate", "dimensions", "options", "keep_alive"}
        )
        body = await self._read_body(request, known_members)
        vectors = _make_vectors(body["input"], body.get("dimensions"))
        response_body = {"model": "up", "embeddings": vectors, "prompt_eval_count": PROMPT}
        return web.json_response(response_body)


async def _send_stream(
    request: web.Request, media_type: str, chunks: Iterator[bytes]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": media_type})
    await response.prepare(request)
    for chunk in chunks:
        await response.write(chunk)
    return response


def _make_vectors(inputs: str | list[Any], dimensions: int | None) -> list[list[float]]:
    is_single = isinstance(inputs, str) or isinstance(inputs[0], int)
    texts = [inputs] if is_single else inputs
    return [[len(text) + 0.5] * (dimensions or 3) for text in texts]
