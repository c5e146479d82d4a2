"""Makes what the screens of commands show: jobs, batches, files, keys and people of one tenant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from moyin.client.gateway import GatewayClient
from tests.stack import ROOT
from tests.waiting import eventually

OWNER = "studio"
_ORGANISATIONS = "/accounts/organisations"
_CHAT = {"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
_SWATCH = {"prompt": "the sea", "width": 64, "height": 64}


async def make_content(url: str, key: str, folder: Path) -> Sequence[Mapping[str, str]]:
    """Return the values of the placeholders for two runs of all commands."""
    picture, lines = folder / "sea.png", folder / "requests.jsonl"
    Image.linear_gradient("L").resize((64, 36)).convert("RGB").save(picture)
    line = {"method": "POST", "url": "/v1/chat/completions", "body": _CHAT}
    lines.write_text("".join(json.dumps({"custom_id": f"line-{n}", **line}) + "\n" for n in (1, 2)))
    shared = {
        "picture": str(picture), "pictures": str(folder), "lines": str(lines),
        "graph": str(ROOT / "examples" / "dawn.json"),
    }  # fmt: skip
    async with GatewayClient(url, api_key=key, reconnect_seconds=1) as gateway:
        # Long before the screen of its budget, because replicas cache limits for some seconds.
        await gateway.call("PUT", f"/accounts/limits/owner:{OWNER}", {"usd_per_day": "5"})
        organisation = await gateway.call("POST", _ORGANISATIONS, {"name": "Screens and sons"})
        shared["organisation"] = organisation["id"]
        invited = {"email": "ann@studio.example", "name": "Ann"}
        members = f"{_ORGANISATIONS}/{organisation['id']}/members"
        shared["member"] = (await gateway.call("POST", members, invited))["id"]
        shared["batch"] = await _submit_batch(gateway, lines)
        shared["chat"] = await _run(gateway, "chat", request=_CHAT)
        shared["render"] = await _run(gateway, "render", template="swatch", inputs=_SWATCH)
        shared["sweep"] = await _run(
            gateway, "render", template="swatch", inputs=_SWATCH, batch={"seeds": [10, 20, 30]}
        )
        await eventually(lambda: _has_ended(gateway, shared["batch"]), 120)
        return [{**shared, **await _make_own(gateway, run, lines)} for run in ("first", "second")]


async def _make_own(gateway: GatewayClient, run: str, lines: Path) -> dict[str, str]:
    """Make what one run of the commands changes or deletes."""
    failing: dict[str, Any] = {
        "request": {"path": "/nothing-is-here"},
        "metadata": {"screens": run},
    }
    failed, retried = await asyncio.gather(
        *(_run(gateway, "http", "failed", **failing) for _ in range(2))
    )
    keys = [await gateway.call("POST", "/accounts/keys", {"name": f"Key {n}"}) for n in (1, 2)]
    async with gateway.open("POST", "/v1/chat/completions", _CHAT) as response:
        request = response.headers["x-request-id"]
    return {
        "run": run, "failed": failed, "retried": retried, "key": keys[0]["id"],
        "revoked": keys[1]["id"], "request": request,
        "file": await gateway.upload(_read(lines), "requests.jsonl", "text/plain"),
    }  # fmt: skip


async def _run(gateway: GatewayClient, kind: str, status: str = "succeeded", **body: Any) -> str:
    """Run a job to its end, and return its id."""
    job = await gateway.call("POST", "/jobs", {"kind": kind, **body})
    async for event in gateway.follow_job(job["id"]):
        ended = event.type
    assert ended == status
    return str(job["id"])


async def _submit_batch(gateway: GatewayClient, lines: Path) -> str:
    file = await gateway.post_form("/v1/files", lines, {"purpose": "batch"})
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    batch = await gateway.call("POST", "/v1/batches", {**body, "completion_window": "24h"})
    return str(batch["id"])


async def _has_ended(gateway: GatewayClient, batch_id: str) -> bool:
    batch = await gateway.call("GET", f"/v1/batches/{batch_id}")
    return bool(batch["status"] == "completed")


async def _read(path: Path) -> AsyncIterator[bytes]:
    yield await asyncio.to_thread(path.read_bytes)
