"""Tests that `/docs` of every app needs no key and loads no files from other hosts."""

from __future__ import annotations

import re
from urllib.parse import urljoin

from starlette.testclient import TestClient

from deployments.accounts.app import _PUBLIC as ACCOUNTS
from deployments.gateway.app import _PUBLIC as GATEWAY
from deployments.ingress import new_fastapi
from deployments.models.app import _PUBLIC_PATHS as MODELS
from deployments.swagger import DOCS_PATHS
from moyin.access.gatekeeper import render_problem_details

_REFERENCE = re.compile(r'(?:href|src)="(?!data:)([^"]+)"')


def _make_client() -> TestClient:
    app = new_fastapi("Moyin <test>", errors=render_problem_details, description="")
    return TestClient(app, root_path="/v1")


def test_page_and_its_files_come_from_the_app() -> None:
    client = _make_client()
    page = client.get("/docs")
    assert "<title>Moyin &lt;test&gt;</title>" in page.text
    addresses = _REFERENCE.findall(page.text)
    assert addresses == ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js"]
    types_by_address = {}
    for address in addresses:
        response = client.get(urljoin("/docs", address))
        assert (response.status_code, len(response.content) > 100_000) == (200, True), address
        assert response.headers["x-content-type-options"] == "nosniff"
        types_by_address[address] = response.headers["content-type"].partition(";")[0]
    assert types_by_address == dict(zip(addresses, ("text/css", "text/javascript"), strict=True))


def test_content_security_policy_blocks_other_hosts() -> None:
    page = _make_client().get("/docs")
    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not re.search(r"https?:|\*|unsafe-eval", " ".join(policy.values()))
    assert "'unsafe-inline'" not in policy["script-src"]
    assert page.headers["x-frame-options"] == "DENY"


def test_page_needs_no_key() -> None:
    for prefix, public_paths in (("/", GATEWAY), ("/v1/", MODELS), ("/accounts/", ACCOUNTS)):
        assert {f"{prefix}{name}" for name in (*DOCS_PATHS, "openapi.json")} <= public_paths
