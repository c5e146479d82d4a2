"""Tests that a real gateway serves the console's page and files at ``/console/``."""

from __future__ import annotations

import gzip
import re

import aiohttp
import pytest

from tests.integration.gateway.fixtures import Farm

SCRIPT = b"console.log('the console');\n" * 100
PAGE = """<!doctype html><meta property="csp-nonce" nonce="__CSP_NONCE__">
<style nonce="__CSP_NONCE__">p {}</style><script type="module" src="/console/assets/x.js"></script>"""


@pytest.fixture
def console_farm(farm: Farm) -> Farm:
    assets_folder = farm.console_folder / "assets"
    assets_folder.mkdir(parents=True)
    (farm.console_folder / "index.html").write_text(PAGE)
    (farm.console_folder / "icon.svg").write_text("<svg/>")
    (assets_folder / "x.js").write_bytes(SCRIPT)
    return farm


async def test_every_view_is_the_page_with_a_fresh_nonce(console_farm: Farm) -> None:
    nonces = set()
    async with aiohttp.ClientSession(console_farm.url) as browser:
        async with browser.get("/console", allow_redirects=False) as response:
            assert (response.status, response.headers["location"]) == (307, "/console/")
        for path in (
            "/console/",
            "/console/index.html",
            "/console/jobs/7?x=a.b",
            "/console/jobs/7.b",
        ):
            async with browser.get(path) as response:
                assert (response.status, response.content_type) == (200, "text/html"), path
                page, headers = await response.text(), response.headers
            [nonce] = set(re.findall(r'nonce="([^"]+)"', page))
            nonces.add(nonce)
            assert headers["content-security-policy"] == (
                f"default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; "
                "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self'; "
                "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
            )
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
    assert len(nonces) == 4 and "__CSP_NONCE__" not in nonces


async def test_files_are_cached_compressed_and_confined(console_farm: Farm) -> None:
    (console_farm.console_folder.parent / "secret.txt").write_text("secret")
    async with aiohttp.ClientSession(console_farm.url, auto_decompress=False) as browser:
        plain_headers = {"accept-encoding": "identity"}
        async with browser.get("/console/assets/x.js", headers=plain_headers) as response:
            assert (response.status, response.content_type) == (200, "text/javascript")
            assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert response.headers["vary"] == "accept-encoding"
            assert "content-encoding" not in response.headers
            assert await response.read() == SCRIPT
            etag = response.headers["etag"]
        async with browser.get(
            "/console/assets/x.js", headers={"accept-encoding": "br, gzip"}
        ) as response:
            assert response.headers["content-encoding"] == "gzip"
            assert gzip.decompress(await response.read()) == SCRIPT
        async with browser.get(
            "/console/assets/x.js", headers={"if-none-match": f'"other", {etag}'}
        ) as response:
            assert (response.status, await response.read()) == (304, b"")
        async with browser.get("/console/icon.svg") as response:
            assert (response.status, response.content_type) == (200, "image/svg+xml")
            assert response.headers["cache-control"] == "no-cache"
        async with browser.head("/console/assets/x.js") as response:
            assert response.status == 200
        for path in ("assets/none.js", "x.png", "%2e%2e/secret.txt", "..%2fsecret.txt"):
            async with browser.get(f"/console/{path}") as response:
                # A client may resolve the dots itself; the path is then not the console's.
                assert response.status in (401, 404) and await response.text() != "secret", path


async def test_a_gateway_without_built_files_reports_the_reason(farm: Farm) -> None:
    async with aiohttp.ClientSession(farm.url) as browser:
        async with browser.get("/console/") as response:
            assert (response.status, response.content_type) == (503, "text/html")
            assert "not built" in await response.text()
        async with browser.get("/console/x.js") as response:
            assert (response.status, (await response.json())["code"]) == (404, "route_not_found")
        # The page's prefix makes nothing else public.
        async with browser.get("/consolex") as response:
            assert response.status == 401
