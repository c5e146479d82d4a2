"""Provides a fake Ollama host for unit tests, with the responses of a real Ollama 0.17.4.

It has no model: every answer is ``Hi``, and ends when the test allows it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

_CREATED = "2026-11-28T06:00:00.123456789Z"
_TOKEN = {"token": "Hi", "logprob": -0.25, "bytes": [72, 105]}
_LOGPROBS = [
    {**_TOKEN, "top_logprobs": [_TOKEN, {"token": "Yo", "logprob": -1.5, "bytes": [89, 111]}]}
]


class FakeOllamaHost:
    """An HTTP server that implements the calls of Ollama's API that concern models.

    Attributes:
        url: URL of this server while it is running.
        models: capabilities of the models on the disk, by the model's name and tag.
        weights: the name of the weights, by model, for models that share weights.
        remote: names of models that another host runs.
        resident: names of the models in memory, as ``/api/ps`` lists them.
        parallel: number of calls that run at a time; further calls wait.
        may_show: event; ``/api/show`` responds while it is set.
        failing: True if requests to ``/api/chat`` and ``/api/generate`` fail.
        may_end: event; answers end while it is set.
        received: method, path and body of each request that runs, pulls or changes a model. For an
            uploaded blob, its size in bytes is in place of the body.
    """

    def __init__(self, models: dict[str, list[str]] | None = None, *, parallel: int = 1) -> None:
        self.url = ""
        self.models = models if models is not None else {"smollm2:latest": ["completion"]}
        self.weights: dict[str, str] = {}
        self.remote: set[str] = set()
        self.resident: set[str] = set()
        self.context = 8192
        self.parameters = 'stop                           "<|im_end|>"'
        self.may_show = asyncio.Event()
        self.may_show.set()
        self.failing = False
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.received: list[tuple[str, str, Any]] = []
        self.shown: list[str] = []
        self._running = asyncio.Semaphore(parallel)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeOllamaHost]:
        """Serve on a free port of 127.0.0.1 until the block ends; ``url`` has the address."""
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/api/version", self._get_version)
        app.router.add_get("/api/tags", self._list_models)
        app.router.add_get("/api/ps", self._list_resident_models)
        app.router.add_post("/api/show", self._show_model)
        for path in ("/api/chat", "/api/generate"):
            app.router.add_post(path, self._answer_prompt)
        app.router.add_post("/api/pull", self._pull_model)
        app.router.add_post("/api/copy", self._copy_or_delete_model)
        app.router.add_delete("/api/delete", self._copy_or_delete_model)
        app.router.add_post("/api/blobs/{digest}", self._receive_blob)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _get_version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.17.4"})

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [self._describe(name) for name in self.models]})

    def _describe(self, name: str) -> dict[str, Any]:
        entry = {
            "name": name,
            "model": name,
            "modified_at": _CREATED,
            "size": 98_000_000,
            "digest": f"{abs(hash((name, *self.models.get(name, ())))):064x}",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "llama",
                "families": ["llama"],
                "parameter_size": "134.52M",
                "quantization_level": "Q4_1",
            },
        }
        if name in self.remote:
            entry |= {"remote_model": name, "remote_host": "https://ollama.com:443"}
        return entry

    async def _list_resident_models(self, _: web.Request) -> web.Response:
        memory_members = {
            "size_vram": 0,
            "expires_at": "2026-11-28T06:05:00Z",
            "context_length": 4096,
        }
        return web.json_response(
            {
                "models": [
                    self._describe(name) | {"size": 250, **memory_members} for name in self.resident
                ]
            }
        )

    async def _show_model(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        self.shown.append(name)
        await self.may_show.wait()
        if name not in self.models:
            return web.json_response({"error": f"model '{name}' not found"}, status=404)
        digest = f"{abs(hash(self.weights.get(name, name))):064x}"
        return web.json_response(
            {
                "modelfile": f"# Modelfile\n\nFROM /root/.ollama/models/blobs/sha256-{digest}\n",
                "parameters": self.parameters,
                "template": "{{ .Prompt }}",
                "details": {
                    **self._describe(name)["details"],
                    "parent_model": f"/root/.ollama/models/blobs/sha256-{digest}",
                },
                "model_info": {
                    "general.architecture": "llama",
                    "llama.context_length": self.context,
                    "tokenizer.ggml.tokens": None,
                },
                "capabilities": self.models[name],
                "modified_at": _CREATED,
            }
        )

    async def _answer_prompt(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append((request.method, request.path, body))
        if self.failing:
            return web.json_response({"error": "the runner has crashed"}, status=500)
        common_members = {"model": body["model"], "created_at": _CREATED}
        is_chat = request.path == "/api/chat"

        def build_message(text: str) -> dict[str, Any]:
            if is_chat:
                return {**common_members, "message": {"role": "assistant", "content": text}}
            return {**common_members, "response": text}

        if not (body.get("messages") or body.get("prompt")):
            reason = "unload" if body.get("keep_alive") == 0 else "load"
            update_resident = self.resident.discard if reason == "unload" else self.resident.add
            update_resident(body["model"])
            return web.json_response({**build_message(""), "done": True, "done_reason": reason})
        last_members = {
            "done": True,
            "done_reason": "stop",
            "total_duration": 3,
            "load_duration": 1,
        }
        last_members |= {"prompt_eval_count": 9, "prompt_eval_duration": 1}
        last_members |= {"eval_count": 2, "eval_duration": 1}
        logprobs = {"logprobs": _LOGPROBS} if body.get("logprobs") else {}
        async with self._running:
            if body.get("stream") is False:
                await self.may_end.wait()
                return web.json_response({**build_message("Hi"), **logprobs, **last_members})
            stream = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
            await stream.prepare(request)
            await stream.write(_encode_line({**build_message("Hi"), "done": False, **logprobs}))
            await self.may_end.wait()
            await stream.write(_encode_line({**build_message(""), **last_members}))
            return stream

    async def _pull_model(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append((request.method, request.path, body))
        stream = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await stream.prepare(request)
        for status in ("pulling manifest", "success"):
            await stream.write(_encode_line({"status": status}))
        self.models[body["model"]] = ["completion", "tools"]
        return stream

    async def _copy_or_delete_model(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.received.append((request.method, request.path, body))
        name = body.get("model", body.get("source"))
        if name not in self.models:
            return web.json_response({"error": f"model '{name}' not found"}, status=404)
        if "destination" in body:
            self.models[body["destination"]] = self.models[name]
        else:
            del self.models[name]
        return web.Response()

    async def _receive_blob(self, request: web.Request) -> web.Response:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        self.received.append((request.method, request.path, size))
        return web.Response(status=201)


def _encode_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
