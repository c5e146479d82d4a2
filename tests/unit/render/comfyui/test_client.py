"""Tests the limits on responses of a ComfyUI whose nodes may be hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from moyin.errors import RenderFailed
from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.paths import HostPathFilter


async def test_prompt_with_too_large_outputs_fails_and_is_dropped(
    tmp_path: Path,
) -> None:
    requests: list[Any] = []

    async def serve_prompt_state(request: web.Request) -> web.Response:
        requests.append(await request.json())
        output_text = "x" * (9 * 1024 * 1024 if requests[-1]["prompt_id"] == "huge" else 1024)
        status = {"status_str": "success", "completed": True}
        entry = {"outputs": {"1": {"text": [output_text]}}, "status": status}
        return web.json_response({"queued": False, "entry": entry})

    app = web.Application()
    app.router.add_post("/moyin/look", serve_prompt_state)
    runner = web.AppRunner(app)
    await runner.setup()
    address = str(tmp_path / "comfyui.sock")
    await web.UnixSite(runner, address).start()
    async with ComfyClient(address, "c", HostPathFilter({})) as client:
        with pytest.raises(RenderFailed, match="exceed the limit of 8,388,608 bytes") as exc_info:
            await client.get_prompt_state("huge")
        assert not exc_info.value.retryable
        assert (await client.get_prompt_state("small")).entry is not None
    await runner.cleanup()
    assert requests == [
        {"prompt_id": "huge", "forget": []},
        {"prompt_id": "small", "forget": ["huge"]},
    ]
