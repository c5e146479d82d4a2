from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import moyin_client.async_client
import moyin_client.client
from moyin_client import AsyncClient, Client, RetryPolicy
from tests.unit.clients.python.scripted_gateway import ScriptedGateway


class AnyClient:
    """Wraps the synchronous or the asynchronous client, so that tests call both in the same way."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self._client = client

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(self._client, method)(*arguments, **options)
        return result if isinstance(self._client, Client) else await result

    async def collect(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        items = getattr(self._client, method)(*arguments, **options)
        return list(items) if isinstance(self._client, Client) else [item async for item in items]


class Pauses:
    """Replaces the sleep of both clients: records each pause, and calls ``on_pause``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.on_pause()

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(moyin_client.client, "sleep", pauses.sleep)
    monkeypatch.setattr(moyin_client.async_client, "sleep", pauses.sleep_async)
    return pauses


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    yield gateway
    gateway.stop()


@pytest.fixture(params=["sync", "async"])
async def client(
    request: pytest.FixtureRequest, gateway: ScriptedGateway, pauses: Pauses
) -> AsyncIterator[AnyClient]:
    policy = RetryPolicy(tries=4)
    if request.param == "sync":
        with Client(gateway.url, "key-1", retry=policy) as client:
            yield AnyClient(client)
    else:
        async with AsyncClient(gateway.url, "key-1", retry=policy) as client:
            yield AnyClient(client)
