"""Tests that calls to the services behind the proxy can become durable jobs."""

from __future__ import annotations

import aiohttp
import pytest

from deployments.gateway.config import GatewayConfig
from moyin.store.keys import KeyStore
from tests.integration.gateway.fixtures import Farm

BODY = b'{"seed": 18446744073709551615, "text": "${steps.0.text}"}'


@pytest.fixture
async def farm_with_services(working_farm: Farm) -> Farm:
    """Return a farm with the routes ``slow``, whose calls can become jobs, and ``fast``.

    Both lead to stub services.
    """
    routes = [
        {"name": "slow", "prefix": "/slow", "strip_prefix": False, "async": True},
        {"name": "fast", "prefix": "/fast", "strip_prefix": False},
    ]
    upstreams = {"upstreams": [working_farm.services_url]}
    config = GatewayConfig.model_validate({"routes": [route | upstreams for route in routes]})
    working_farm.proxy.configure(config.to_route_table(working_farm.services_url))
    return working_farm


async def test_a_slow_service_s_calls_are_jobs(farm_with_services: Farm) -> None:
    headers = {"content-type": "application/json", "x-shot": "7", "idempotency-key": "once"}
    submissions = []
    for _ in range(2):
        async with farm_with_services.client.post(
            "/slow/a%20b?n=1", data=BODY, headers=headers
        ) as response:
            assert response.status == 202
            job = await response.json()
            assert response.headers["location"] == f"/jobs/{job['id']}"
            submissions.append((job["id"], response.headers.get("idempotent-replayed")))
    assert submissions == [(job["id"], None), (job["id"], "true")]
    finished_job = await farm_with_services.wait_for_status(job["id"])
    assert (finished_job["status"], finished_job["kind"]) == ("succeeded", "http")
    [(method, path, body, sent_headers)] = [
        c for c in farm_with_services.services.calls if "slow" in c[1]
    ]
    assert (method, path) == ("POST", "/slow/a%20b?n=1")
    assert body == {"seed": 18446744073709551615, "text": "${steps.0.text}"}
    assert (sent_headers["x-shot"], sent_headers["content-type"]) == ("7", "application/json")
    assert sent_headers["authorization"] != f"Bearer {farm_with_services.key}"
    async with farm_with_services.other.get(f"/jobs/{job['id']}") as response:
        assert response.status == 404


async def test_prefer_respond_async_makes_any_call_a_job(farm_with_services: Farm) -> None:
    data = b"\x00\xe9"  # no UTF-8
    prefer_headers = {
        "prefer": "wait=0, respond-async",
        "content-type": "text/plain; charset=latin-1",
    }
    async with farm_with_services.client.put(
        "/fast/x", data=data, headers=prefer_headers
    ) as response:
        assert (response.status, response.headers["preference-applied"]) == (202, "respond-async")
        job = await response.json()
    assert (await farm_with_services.wait_for_status(job["id"]))["status"] == "succeeded"
    assert [
        body for _, path, body, _ in farm_with_services.services.calls if path == "/fast/x"
    ] == ["\x00é"]
    async with farm_with_services.client.put("/fast/y", data=b"now") as response:
        assert (response.status, (await response.json())["path"]) == (200, "/fast/y")


async def test_callers_without_the_jobs_scope_are_answered_synchronously(
    farm_with_services: Farm,
) -> None:
    """The header ``Prefer: respond-async`` is ignored, unless the route requires jobs."""
    _, key = await KeyStore(farm_with_services.database).create(
        "ann", "viewer's", scopes={"jobs:read"}
    )
    headers = {"authorization": f"Bearer {key}", "prefer": "respond-async"}
    async with farm_with_services.client.put("/fast/z", data=b"now", headers=headers) as response:
        assert (response.status, (await response.json())["path"]) == (200, "/fast/z")
        assert "preference-applied" not in response.headers
    async with farm_with_services.client.get("/jobs", headers=headers) as response:
        assert (await response.json())["jobs"] == []
    async with farm_with_services.client.put("/slow/z", data=b"now", headers=headers) as response:
        assert response.status == 202


async def test_call_of_a_job_does_not_become_a_job(farm_with_services: Farm) -> None:
    """The call that a job makes must not become a job itself, or the job would get no response."""
    job = await farm_with_services.submit_job({"kind": "http", "request": {"path": "/slow/direct"}})
    [token] = [
        headers["authorization"]
        for _ in [await farm_with_services.wait_for_status(job["id"])]
        for _, path, _, headers in farm_with_services.services.calls
        if path == "/slow/direct"
    ]
    async with (
        aiohttp.ClientSession(farm_with_services.url) as worker,
        worker.get("/slow/direct", headers={"authorization": token}) as response,
    ):
        assert (response.status, (await response.json())["path"]) == (200, "/slow/direct")
