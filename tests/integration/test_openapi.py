"""Schemathesis asks everything that the apps' descriptions allow, and much that they do not."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import schemathesis
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

from moyin.settings import Settings
from tests.door import Measured
from tests.integration.accounts_fixtures import (
    PASSWORD,
    SECRET,
    AccountsDoor,
    Postgres,
    accounts_serving,
)
from tests.integration.jobs_fixtures import Farm, Services
from tests.integration.models_fixtures import serving, settled
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.wires.server import WireServer

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
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    up = threading.Event()
    told: list[tuple[str, dict[str, str]]] = []

    async def run() -> None:
        async with serving() as given:
            told.append(given)
            up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert up.wait(60)
    yield told[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


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
        async with accounts_serving(configured) as door:
            yield f"{door.url}/accounts/openapi.json", await _bearers(door)

    with in_thread(serving) as given:
        yield given


@pytest.fixture(scope="module")
def models_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("models")

    @asynccontextmanager
    async def serving_models() -> AsyncIterator[tuple[str, dict[str, str]]]:
        async with WireServer().running() as wire:
            backend = {
                "name": "wire", "type": "openai", "base_url": f"{wire.url}/v1",
                "models": [{"name": "m", "context": 8192, "price": 0}],
            }  # fmt: skip
            async with serving(folder, backend) as door:
                await settled(door)
                yield f"{door.url}/v1/openapi.json", {"owner": door.api_key}

    with in_thread(serving_models) as given:
        yield given


async def _bearers(door: AccountsDoor) -> dict[str, str]:
    admin = await door.member(await door.organisation(), "admin")
    return {"operator": door.operator, "admin": admin["access_token"]}


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
    **path_parameters: str,
) -> tuple[list[str], int]:
    """What every operation of a description does against it, and how many requests were sent.

    Args:
        only: one path instead of all but those left out.
        bearers: asked before each request, instead of those of the app.
        path_parameters: put into every good request.
    """
    url, known = app
    found, sent = [], 0
    for result in schemathesis.openapi.from_url(url).get_all_operations():
        operation = result.ok()
        if operation.path != only if only else operation.path in left_out:
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @EXAMPLES
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal sent
                case.path_parameters.update(path_parameters)
                for bearer in bearers() if bearers is not None else known.values():
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


STREAMS = ("/jobs/{job_id}/events", "/api/v2/jobs/{job_id}/events")


def test_gateway(gateway_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    found, sent = violations(gateway_app, *STREAMS)
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to the gateway, 0 errors, 0 undocumented answers")


def test_event_streams(gateway_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    """Of a job that has ended: the answer is whole. Of one that waits: as much as comes at once."""
    url, bearers = gateway_app
    door = url.removesuffix("/openapi.json")
    headers = {"authorization": f"Bearer {bearers['owner']}"}
    ended, waiting = _render(door, headers), _render(door, headers)
    assert httpx.post(f"{door}/jobs/{ended}/cancel", headers=headers, timeout=60).is_success
    while (
        httpx.get(f"{door}/jobs/{ended}", headers=headers, timeout=60).json()["status"]
        != "cancelled"
    ):
        time.sleep(0.05)
    told = 0
    for path in STREAMS:
        for job in ({"job_id": ended}, {}):
            found, sent = violations(gateway_app, only=path, **job)
            assert not found, "\n\n".join(found)
            told += sent
        live_path = door + path.format(job_id=waiting)
        with httpx.stream("GET", live_path, headers=headers, timeout=60) as live:
            assert live.status_code == 200
            assert live.headers["content-type"].startswith("text/event-stream")
            assert any(line.startswith("event: ") for line in live.iter_lines())
    measured(f"schemathesis: {told} requests to event streams, 0 errors, 0 undocumented answers")


def _render(door: str, headers: dict[str, str]) -> str:
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    body = {"kind": "render", "workflow": graph}
    answer = httpx.post(f"{door}/jobs", json=body, headers=headers, timeout=60)
    return str(answer.json()["id"])


def test_models(models_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    # Pictures are jobs, and need a door: test_templates asks for them.
    found, sent = violations(models_app, "/images/generations")
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to models, 0 errors, 0 undocumented answers")
