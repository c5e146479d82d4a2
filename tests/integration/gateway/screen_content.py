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
    """Make jobs, files, keys and people, and return placeholder values for two runs of the commands."""
    picture_path, lines_file = folder / "sea.png", folder / "requests.jsonl"
    Image.linear_gradient("L").resize((64, 36)).convert("RGB").save(picture_path)
    request_line = {"method": "POST", "url": "/v1/chat/completions", "body": _CHAT}
    lines_file.write_text(
        "".join(json.dumps({"custom_id": f"line-{n}", **request_line}) + "\n" for n in (1, 2))
    )
    shared_values = {
        "picture": str(picture_path), "pictures": str(folder), "lines": str(lines_file),
        "graph": str(ROOT / "examples" / "dawn.json"),
    }  # fmt: skip
    async with GatewayClient(url, api_key=key, reconnect_seconds=1) as gateway:
        # Long before the screen of its budget, because replicas cache limits for some seconds.
        await gateway.call("PUT", f"/accounts/limits/owner:{OWNER}", {"usd_per_day": "5"})
        organisation = await gateway.call("POST", _ORGANISATIONS, {"name": "Screens and sons"})
        shared_values["organisation"] = organisation["id"]
        invitation = {"email": "ann@studio.example", "name": "Ann"}
        members_path = f"{_ORGANISATIONS}/{organisation['id']}/members"
        shared_values["member"] = (await gateway.call("POST", members_path, invitation))["id"]
        shared_values["batch"] = await _submit_batch(gateway, lines_file)
        shared_values["chat"] = await _run_job(gateway, "chat", request=_CHAT)
        shared_values["render"] = await _run_job(
            gateway, "render", template="swatch", inputs=_SWATCH
        )
        shared_values["sweep"] = await _run_job(
            gateway, "render", template="swatch", inputs=_SWATCH, batch={"seeds": [10, 20, 30]}
        )
        await eventually(lambda: _has_ended(gateway, shared_values["batch"]), 120)
        return [
            {**shared_values, **await _make_run_content(gateway, run, lines_file)}
            for run in ("first", "second")
        ]


async def _make_run_content(
    gateway: GatewayClient, run_name: str, lines_file: Path
) -> dict[str, str]:
    """Create the jobs, keys and files that one run of the commands changes; return the placeholder values."""
    failing_job: dict[str, Any] = {
        "request": {"path": "/nothing-is-here"},
        "metadata": {"screens": run_name},
    }
    failed_job, retried_job = await asyncio.gather(
        *(_run_job(gateway, "http", "failed", **failing_job) for _ in range(2))
    )
    keys = [await gateway.call("POST", "/accounts/keys", {"name": f"Key {n}"}) for n in (1, 2)]
    async with gateway.open("POST", "/v1/chat/completions", _CHAT) as response:
        request_id = response.headers["x-request-id"]
    return {
        "run": run_name, "failed": failed_job, "retried": retried_job, "key": keys[0]["id"],
        "revoked": keys[1]["id"], "request": request_id,
        "file": await gateway.upload(_read_file(lines_file), "requests.jsonl", "text/plain"),
    }  # fmt: skip


async def _run_job(
    gateway: GatewayClient, kind: str, status: str = "succeeded", **body: Any
) -> str:
    """Run a job until it ends, which must be with ``status``, and return its id."""
    job = await gateway.call("POST", "/jobs", {"kind": kind, **body})
    async for event in gateway.follow_job(job["id"]):
        last_event_type = event.type
    assert last_event_type == status
    return str(job["id"])


async def _submit_batch(gateway: GatewayClient, lines_file: Path) -> str:
    file = await gateway.post_form("/v1/files", lines_file, {"purpose": "batch"})
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    batch = await gateway.call("POST", "/v1/batches", {**body, "completion_window": "24h"})
    return str(batch["id"])


async def _has_ended(gateway: GatewayClient, batch_id: str) -> bool:
    batch = await gateway.call("GET", f"/v1/batches/{batch_id}")
    return bool(batch["status"] == "completed")


async def _read_file(path: Path) -> AsyncIterator[bytes]:
    yield await asyncio.to_thread(path.read_bytes)
