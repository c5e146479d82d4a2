"""Schemathesis asks everything that the apps' descriptions allow, and much that they do not."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from aiohttp import web
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deployments.gateway.cluster.bodies import ClusterBody
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates
from moyin.render.templates.response import to_response_body
from moyin.settings import Settings
from tests.integration.access.fixtures import (
    PASSWORD,
    SECRET,
    AccountsApp,
    Postgres,
    accounts_serving,
)
from tests.integration.gateway.fixtures import Farm, Services
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.text.fixtures import serving, settled
from tests.integration.text.wires.server import WireServer
from tests.stack import Measured

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = settings(
    max_examples=4,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
Serving = Callable[[], AbstractAsyncContextManager[tuple[str, dict[str, str]]]]


@contextmanager
def in_thread(serving: Serving) -> Iterator[tuple[str, dict[str, str]]]:
    """An app in a thread of its own, because Schemathesis waits for its answers.

    Gives the URL of its description, and bearers by name.
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving()) as given,
    ):
        yield given


@pytest.fixture(scope="module")
def accounts_app(
    postgres: Postgres,
    migrated_postgres: str,
    tmp_path_factory: pytest.TempPathFactory,
    valkey_server: ValkeyServer,
) -> Iterator[tuple[str, dict[str, str]]]:
    """On PostgreSQL, which is the stricter one."""
    configured = Settings(
        data=tmp_path_factory.mktemp("accounts"),
        database_url=postgres.url(postgres.new(migrated_postgres)),
        redis_url=valkey_server.url,
        secret=SECRET,
    )

    @asynccontextmanager
    async def serving() -> AsyncIterator[tuple[str, dict[str, str]]]:
        async with accounts_serving(configured) as accounts:
            yield f"{accounts.url}/accounts/openapi.json", await _bearers(accounts)

    with in_thread(serving) as given:
        yield given


@pytest.fixture(scope="module")
def models_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("models")

    @asynccontextmanager
    async def serving_models() -> AsyncIterator[tuple[str, dict[str, str]]]:
        async with WireServer().running() as wire, _template_gateway() as gateway_url:
            backend = {
                "name": "wire", "type": "openai", "base_url": f"{wire.url}/v1",
                "models": [{"name": "m", "context": 8192, "price": 0}],
            }  # fmt: skip
            async with serving(folder, backend, gateway_url=gateway_url) as models:
                await settled(models)
                yield f"{models.url}/v1/openapi.json", {"owner": models.api_key}

    with in_thread(serving_models) as given:
        yield given


@asynccontextmanager
async def _template_gateway() -> AsyncIterator[str]:
    """A gateway where every name is that of a template, and jobs have ended by the next look."""
    artifact = {
        "id": "art_1",
        "url": "/artifacts/art_1",
        "name": "a.png",
        "media_type": "image/png",
    }
    job = {
        "id": "job_1",
        "status": "succeeded",
        "artifacts": [artifact],
        "cached": False,
        "cost_usd": 0,
    }
    swatch = to_response_body(read_templates([SHIPPED_FOLDER]).find("swatch", "template"))

    async def template(request: web.Request) -> web.Response:
        return web.Response(text=swatch.model_dump_json(), content_type="application/json")

    async def submit(request: web.Request) -> web.Response:
        return web.json_response(job, status=202, headers={"location": "/jobs/job_1"})

    async def events(request: web.Request) -> web.Response:
        frame = f"event: succeeded\ndata: {json.dumps(job)}\n\n"
        return web.Response(text=frame, content_type="text/event-stream")

    async def content(request: web.Request) -> web.Response:
        return web.Response(body=b"a picture", content_type="image/png")

    app = web.Application()
    app.router.add_get("/templates/{name:.*}", template)
    app.router.add_post("/jobs", submit)
    app.router.add_get("/jobs/job_1/events", events)
    app.router.add_get("/artifacts/art_1", content)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def _bearers(accounts: AccountsApp) -> dict[str, str]:
    admin = await accounts.member(await accounts.organisation(), "admin")
    return {"operator": accounts.operator, "admin": admin["access_token"]}


@pytest.fixture(scope="module")
def gateway_app(
    tmp_path_factory: pytest.TempPathFactory,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("gateway")

    @asynccontextmanager
    async def serving() -> AsyncIterator[tuple[str, dict[str, str]]]:
        farm = Farm(folder, temporal_server, valkey_server, Services())
        await farm.open()
        await farm.start_worker()
        yield f"{farm.url}/openapi.json", {"owner": farm.key}
        await farm.close()

    with in_thread(serving) as given:
        yield given


def violations(
    app: tuple[str, dict[str, str]],
    *left_out: str,
    only: str = "",
    bearers: Callable[[], Iterable[str]] | None = None,
    known: Mapping[str, str] | None = None,
    **path_parameters: str,
) -> tuple[list[str], int]:
    """What every operation of a description does against it, and how many requests were sent.

    Args:
        only: one path instead of all but those left out.
        bearers: asked before each request, instead of those of the app.
        known: ask only the operations whose path parameters are all among these, for good requests.
        path_parameters: put into every good request.
    """
    url, owners = app
    found, sent = [], 0
    # Its default of ten seconds is too short on a busy machine.
    parsed: Any = schemathesis.openapi.from_url(url, timeout=120).get_all_operations()
    operations = [one.ok() for one in parsed]
    # What is there is deleted last.
    for operation in sorted(operations, key=lambda one: one.method == "delete"):
        if operation.path != only if only else operation.path in left_out:
            continue
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
        if known is not None:
            named = set(re.findall(r"\{(\w+)\}", operation.path))
            if not named or not named <= known.keys():
                continue
            modes = [GenerationMode.POSITIVE]
        for mode in modes:

            @EXAMPLES
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal sent
                names = case.path_parameters.keys()
                case.path_parameters.update(path_parameters)
                good = (known or {}).items()
                case.path_parameters.update({n: value for n, value in good if n in names})
                for bearer in bearers() if bearers is not None else owners.values():
                    sent += 1
                    headers = {"authorization": f"Bearer {bearer}"}
                    case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

            try:
                ask()
            except Unsatisfiable:
                continue  # there is nothing to do wrong
            except (FailureGroup, Failure) as error:
                found.append(f"{operation.label}: {error!r} {getattr(error, 'exceptions', '')}")
    assert sent, f"nothing was asked of {only or url}"
    return found, sent


def test_accounts(accounts_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    found, sent = violations(accounts_app, "/logout")
    more, sent_more = violations(
        accounts_app, only="/logout", bearers=lambda: _new_player(accounts_app[0])
    )
    assert not (found + more), "\n\n".join(found + more)
    sent += sent_more
    measured(f"schemathesis: {sent} requests to accounts, 0 errors, 0 undocumented answers")


def _new_player(description: str) -> Iterable[str]:
    """Signing out ends the session that it is asked with."""
    body = {"email": f"{secrets.token_hex(8)}@example.com", "password": PASSWORD}
    url = description.replace("/openapi.json", "/register")
    answer = httpx.post(url, json=body, timeout=60)
    yield answer.json()["access_token"]


STREAMS = ("/cluster/events", "/jobs/{job_id}/events", "/api/v2/jobs/{job_id}/events")


def test_gateway(gateway_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    found, sent = violations(gateway_app, *STREAMS)
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to the gateway, 0 errors, 0 undocumented answers")


def test_event_streams(gateway_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    """Of a job that has ended: the answer is whole. Of one that waits: as much as comes at once."""
    url, bearers = gateway_app
    address = url.removesuffix("/openapi.json")
    headers = {"authorization": f"Bearer {bearers['owner']}"}
    ended, waiting = _render(address, headers), _render(address, headers)
    assert httpx.post(f"{address}/jobs/{ended}/cancel", headers=headers, timeout=60).is_success
    while (
        httpx.get(f"{address}/jobs/{ended}", headers=headers, timeout=60).json()["status"]
        != "cancelled"
    ):
        time.sleep(0.05)
    told = 0
    for path in STREAMS:
        # The stream of the cluster never ends.
        jobs: list[dict[str, Any]] = [{"job_id": ended}, {}] if "{job_id}" in path else []
        for job in jobs:
            found, sent = violations(gateway_app, only=path, **job)
            assert not found, "\n\n".join(found)
            told += sent
        live_path = address + path.format(job_id=waiting)
        with httpx.stream("GET", live_path, headers=headers, timeout=60) as live:
            assert live.status_code == 200
            assert live.headers["content-type"].startswith("text/event-stream")
            lines = live.iter_lines()
            assert any(line.startswith("event: ") for line in lines)
            if path == "/cluster/events":
                ClusterBody.model_validate_json(next(lines).removeprefix("data: "), strict=True)
    measured(f"schemathesis: {told} requests to event streams, 0 errors, 0 undocumented answers")


def _render(address: str, headers: dict[str, str]) -> str:
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    body = {"kind": "render", "workflow": graph}
    answer = httpx.post(f"{address}/jobs", json=body, headers=headers, timeout=60)
    return str(answer.json()["id"])


def test_existing_resources_match_the_description(
    gateway_app: tuple[str, dict[str, str]], measured: Measured
) -> None:
    """What `test_gateway` asks for is never there: here every id and name in a path is of something."""
    url, bearers = gateway_app
    known = _something(
        url.removesuffix("/openapi.json"), {"authorization": f"Bearer {bearers['owner']}"}
    )
    found, sent = violations(gateway_app, *STREAMS, known=known)
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests for what is there, 0 errors, 0 undocumented answers")


def _something(address: str, headers: dict[str, str]) -> dict[str, str]:
    """By the name of the parameter, what a path may name."""
    job = _render(address, headers)
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        assert client.post(f"/jobs/{job}/cancel").is_success
        while client.get(f"/jobs/{job}").json()["status"] != "cancelled":
            time.sleep(0.05)
        artifact = client.post("/artifacts", content=b"\x89PNG\r\n\x1a\n").json()["id"]
        file = {"file": ("a.txt", b"an asset")}
        asset = client.post("/api/v2/assets", files=file).json()["id"]
        for name in ("one", "two"):
            assert client.post(f"/userdata/{name}", content=b"x").is_success
        assert client.post("/settings/Comfy.Locale", json="en").is_success
        link = client.get(f"/api/v2/assets/{asset}").json()["url"]
    token = next((part for part in link.split("/") if len(part) > 60), "x")
    return {
        "job_id": job, "prompt_id": job, "artifact_id": artifact, "asset_id": asset, "file": "one",
        "dest": "two", "id": "Comfy.Locale", "name": "swatch", "node": "EmptyImage",
        "folder": "checkpoints", "kind": "input", "token": token,
    }  # fmt: skip


@pytest.mark.parametrize("app", ["gateway_app", "models_app", "accounts_app"])
def test_a_route_asks_for_a_key_where_the_description_says_so(
    app: str, request: pytest.FixtureRequest
) -> None:
    url, _ = request.getfixturevalue(app)
    described = httpx.get(url, timeout=60).json()
    base = url.removesuffix("/openapi.json")
    wrong = []
    with httpx.Client(timeout=60) as client:
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                answer = client.request(method, base + re.sub(r"\{[^}]+\}", "x", path))
                # A link to a file is its own proof.
                if path.startswith("/artifacts/signed/"):
                    continue
                needed = operation.get("security", described["security"]) != []
                if needed != (answer.status_code == 401):
                    wrong.append((method, path, answer.status_code))
    # Of these the proof is in the body.
    assert [
        one for one in wrong if one[1] not in ("/refresh", "/password/reset", "/comfy/session")
    ] == []


def test_models(models_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    found, sent = violations(models_app)
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to models, 0 errors, 0 undocumented answers")
