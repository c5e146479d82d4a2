"""Tests that routes are added to and removed from a whole farm without affecting other requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import jwt
import yaml

from tests.integration.proxy.upstream import Service, serving
from tests.stack import RunningStack
from tests.waiting import eventually

FORGED_HEADERS = {
    "x-moyin-identity": "forged", "x-moyin-owner": "victim", "X_Moyin_Owner": "victim",
    "x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "https",
}  # fmt: skip


async def test_a_route_is_added_and_removed_without_downtime(
    gateway: RunningStack, tmp_path: Path
) -> None:
    service, original_config = Service(), gateway.env["MOYIN_SERVE_CONFIG"]
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with (
        serving(service) as url,
        aiohttp.ClientSession(gateway.url, headers=headers) as client,
    ):

        async def request_status() -> int:
            async with client.get("/hot/x?a=1", headers=FORGED_HEADERS) as response:
                await response.read()
                return response.status

        async def is_added() -> bool:
            return await request_status() == 200

        async def is_removed() -> bool:
            return await request_status() == 404

        assert await is_removed()
        async with _sending_other_requests(client) as status_counts:
            await asyncio.to_thread(
                gateway.run, "deploy", "--config", _add_route(original_config, url, tmp_path)
            )
            try:
                await eventually(is_added, 180)
                async with client.get("/hot/x", headers={"authorization": ""}) as response:
                    assert response.status == 401
            finally:
                await asyncio.to_thread(gateway.run, "deploy", "--config", original_config)
            await eventually(is_removed, 180)
        assert status_counts.keys() == {200} and status_counts[200] > 20
    request = service.seen[-1]
    assert request.path_qs == "/new/x?a=1"
    assert "authorization" not in request.headers and "X_Moyin_Owner" not in request.headers
    assert (request.headers["x-moyin-owner"], request.headers["x-forwarded-proto"]) == (
        "admin",
        "http",
    )
    assert "x-forwarded-for" not in request.headers
    secret = gateway.run("routes", "secret", "hot").stdout.strip()
    claims = jwt.decode(request.headers["x-moyin-identity"], secret, ["HS256"], audience="hot")
    assert (claims["sub"], claims["scopes"]) == ("admin", ["*"])


@asynccontextmanager
async def _sending_other_requests(client: aiohttp.ClientSession) -> AsyncIterator[Counter[int]]:
    """Send other requests to the gateway one after the other; yield the counts of statuses."""
    status_counts: Counter[int] = Counter()
    stop_event = asyncio.Event()

    async def send_requests() -> None:
        while not stop_event.is_set():
            async with client.get("/jobs?limit=1") as response:
                await response.read()
                status_counts[response.status] += 1

    load_task = asyncio.create_task(send_requests())
    yield status_counts
    stop_event.set()
    await load_task


def _add_route(config_path: str, url: str, folder: Path) -> str:
    """Write the configuration with one more route to a file, and return its path."""
    loaded_config = yaml.safe_load(Path(config_path).read_text())
    [gateway_app] = [app for app in loaded_config["applications"] if app["name"] == "gateway"]
    route = {
        "name": "hot",
        "prefix": "/hot",
        "upstreams": [url],
        "rewrite": {"match": "^/", "to": "/new/"},
    }
    gateway_app["deployments"][0]["user_config"]["routes"].append(route)
    new_path = folder / "more.yaml"
    new_path.write_text(yaml.safe_dump(loaded_config))
    return str(new_path)
