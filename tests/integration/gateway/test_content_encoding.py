"""Tests compressed request bodies on a real gateway."""

from __future__ import annotations

import gzip
import json

import pytest

from deployments.gateway.config import GatewayConfig
from tests.integration.gateway.fixtures import Farm
from tests.integration.proxy.upstream import Service, serving

JOB = {"kind": "http", "request": {"path": "/x"}}


async def test_a_compressed_job_is_accepted(farm: Farm) -> None:
    body = gzip.compress(json.dumps(JOB).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    async with farm.client.post("/jobs", data=body, headers=headers) as response:
        assert response.status == 202, await response.text()
        assert (await response.json())["kind"] == "http"


@pytest.mark.parametrize("path", ["/jobs", "/artifacts", "/prompt", "/upload/image"])
async def test_bodies_that_can_not_be_decoded_are_refused(farm: Farm, path: str) -> None:
    for encoding, body, status, code in (
        ("gzip", b"{}", 400, "invalid_content_encoding"),
        ("br", b"{}", 415, "unsupported_content_encoding"),
        ("gzip", gzip.compress(bytes(2 * farm.max_body_bytes)), 413, "body_too_large"),
    ):
        headers = {"content-encoding": encoding, "content-type": "application/json"}
        async with farm.client.post(path, data=body, headers=headers) as response:
            text = await response.text()
            assert (response.status, code in text) == (status, True), text


@pytest.mark.parametrize("encoding", ["gzip", "aes128gcm"])
async def test_the_proxy_forwards_bodies_as_they_are(farm: Farm, encoding: str) -> None:
    service = Service()
    body = gzip.compress(bytes(2 * farm.max_body_bytes))
    async with serving(service) as url:
        routes = [{"name": "assets", "prefix": "/assets", "upstreams": [url]}]
        config = GatewayConfig.model_validate({"routes": routes})
        farm.proxy.configure(config.to_route_table("http://127.0.0.1:1"))
        headers = {"content-encoding": encoding}
        async with farm.client.post("/assets/x", data=body, headers=headers) as response:
            assert await response.read() == body
    [request] = service.seen
    assert request.headers["content-encoding"] == encoding
    assert request.headers["content-length"] == str(len(body))
