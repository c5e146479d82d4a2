"""Schemathesis asks everything that the apps' descriptions allow, and much that they do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

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
    SECRET,
    AccountsDoor,
    Postgres,
    accounts_serving,
)
from tests.integration.jobs_fixtures import Farm, Services, TemporalServer, ValkeyServer
from tests.integration.models_fixtures import serving

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
        async with serving(folder) as door:
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
        yield f"{farm.url}/openapi.json", {"owner": farm.key}
        await farm.close()

    with in_thread(serving) as given:
        yield given


def violations(app: tuple[str, dict[str, str]], *left_out: str) -> tuple[list[str], int]:
    """What every operation of a description does against it, and how many requests were sent."""
    url, bearers = app
    found, sent = [], 0
    for result in schemathesis.openapi.from_url(url).get_all_operations():
        operation = result.ok()
        if operation.path in left_out:
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @EXAMPLES
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal sent
                for bearer in bearers.values():
                    sent += 1
                    headers = {"authorization": f"Bearer {bearer}"}
                    case.call_and_validate(headers=headers, checks=CHECKS)

            try:
                ask()
            except Unsatisfiable:
                continue  # there is nothing to do wrong
            except (FailureGroup, Failure) as error:
                found.append(f"{operation.label}: {error!r} {getattr(error, 'exceptions', '')}")
    return found, sent


def test_accounts(accounts_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    # Signing out would end the session that the others are asked with; see test_accounts.
    found, sent = violations(accounts_app, "/logout")
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to accounts, 0 errors, 0 undocumented answers")


def test_gateway(gateway_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    # An event stream lasts as long as its job; see test_events.
    streams = ("/jobs/{job_id}/events", "/api/v2/jobs/{job_id}/events")
    found, sent = violations(gateway_app, *streams)
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to the gateway, 0 errors, 0 undocumented answers")


def test_models(models_app: tuple[str, dict[str, str]], measured: Measured) -> None:
    # Without a back end it is not ready, and without a door there are no pictures (test_templates).
    found, sent = violations(models_app, "/readyz", "/images/generations")
    assert not found, "\n\n".join(found)
    measured(f"schemathesis: {sent} requests to models, 0 errors, 0 undocumented answers")
