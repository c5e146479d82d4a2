"""Runs the examples of docs/grpc.md with a plain grpcio client against a real gateway."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.bridge import GrpcBridge
from moyin.jobs.grpc.moyin_pb2_grpc import MoyinServicer, MoyinStub, add_MoyinServicer_to_server
from tests.examples import read_example
from tests.integration.gateway.fixtures import Farm
from tests.integration.text.fixtures import serving

PAGE = "docs/grpc.md"


class BridgeServicer(MoyinServicer):
    """Implements the calls of the page's examples as the gateway's deployment does."""

    def __init__(self, bridge: GrpcBridge) -> None:
        self._bridge = bridge

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatEvent]:
        async for event in self._bridge.chat(request, context.invocation_metadata()):
            yield event

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        return await self._bridge.list_jobs(request, context.invocation_metadata())


@asynccontextmanager
async def serve_bridge(url: str) -> AsyncIterator[str]:
    """Serve gRPC for the gateway at ``url`` and yield the address."""
    bridge, server = GrpcBridge(url), grpc.aio.server()
    add_MoyinServicer_to_server(BridgeServicer(bridge), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await bridge.close()


async def run_code(code: str, **variables: Any) -> str:
    """Run Python code with these variables in a thread, and return what it prints."""
    with redirect_stdout(io.StringIO()) as output:
        await asyncio.to_thread(exec, code, variables)
    return output.getvalue()


async def answer_chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    assert body["stream"] is True
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    answer_text = f"re: {body['messages'][-1]['content']}"
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": {"content": answer_text}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    events = [json.dumps(chunk | {"choices": [choice]}) for choice in choices]
    content = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    return web.Response(text=content, content_type="text/event-stream")


async def test_a_chat_is_streamed(tmp_path: Path) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer_chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    backend = {
        "name": "echo",
        "type": "openai",
        "base_url": f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
        "models": [{"name": "m", "context": 8_000, "price": 0}],
    }
    async with serving(tmp_path, backend) as models_app, serve_bridge(models_app.url) as address:
        example = read_example(PAGE, "chat", "python").replace("127.0.0.1:9000", address)
        assert await run_code(example, key=models_app.api_key) == "re: Hi"
    await runner.cleanup()


@pytest.mark.parametrize("limit", [100, 1])
async def test_jobs_are_listed_page_by_page(working_farm: Farm, limit: int) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    working_farm.services.answers["/v1/chat/completions"] = refuse
    request = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    job = {"kind": "chat", "request": request}
    job_ids = []
    for project in ("aurora", "dawn", "aurora"):
        submitted_job = await working_farm.submit_job(job | {"metadata": {"project": project}})
        job_ids.append((await working_farm.wait_for_status(submitted_job["id"], "failed"))["id"])
    metadata = [("authorization", f"Bearer {working_farm.key}")]
    example = read_example(PAGE, "list", "python").replace("limit=100", f"limit={limit}")
    async with serve_bridge(working_farm.url) as address:
        with grpc.insecure_channel(address) as channel:
            output = await run_code(example, pb=pb, stub=MoyinStub(channel), metadata=metadata)
    assert [line.split()[0] for line in output.splitlines()] == [job_ids[2], job_ids[0]]
