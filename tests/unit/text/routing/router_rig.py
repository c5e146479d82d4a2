"""Provides a router with fake back ends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from moyin.domain.money import FREE_TARIFF, Tariff, create_flat_tariff
from moyin.domain.needs import Model
from moyin.http.breaker import Breaker
from moyin.store.usage import UsageEntry
from moyin.testing.backends import FakeBackend
from moyin.testing.fakes import RecordingTelemetry
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import Answer, RoutingContext
from moyin.text.routing.answer_cache import CachedResponses
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import Catalog, ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router

CHEAP = create_flat_tariff(Decimal(1), Decimal(2))
RAW = json.dumps(
    {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}, indent=3
).encode()
CHUNK = b'data: {"choices": [{"delta": {"content": "12345678"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
TOTAL = b'data: {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}\n\n'


class RecordedLedger(list[UsageEntry]):
    record = list.append


class Rig:
    """A router with fake back ends, whose prices are 0, 1, 2 and so on."""

    def __init__(
        self,
        *backends: FakeBackend,
        tariff: Tariff | None = None,
        cache: CachedResponses | None = None,
        aliases: dict[str, Any] | None = None,
        runtime: dict[str, Any] | None = None,
        abilities: tuple[str, ...] = (),
        **rules: Any,
    ) -> None:
        self.ledger, self.telemetry = RecordedLedger(), RecordingTelemetry()
        self.runtimes = [
            BackendRuntime(
                name=f"b{number}",
                backend=backend,
                pass_through=backend,
                timeout=5,
                breaker=Breaker(lambda: 0.0),
                **(runtime or {}),
            )
            for number, backend in enumerate(backends)
        ]
        prices = [
            tariff or (FREE_TARIFF if not n else create_flat_tariff(Decimal(n), Decimal(n)))
            for n in range(9)
        ]
        ability_flags: dict[str, Any] = dict.fromkeys(abilities, True)
        deployments = tuple(
            ModelDeployment(
                backend=runtime.name,
                api_format=backend.api_format,
                model=Model(
                    name=f"m{number}",
                    upstream="up",
                    context=9000,
                    tariff=prices[number],
                    **ability_flags,
                ),
            )
            for number, (runtime, backend) in enumerate(zip(self.runtimes, backends, strict=True))
        )
        runtimes = {runtime.name: runtime for runtime in self.runtimes}
        catalog = Catalog(deployments=deployments, aliases=aliases or {})
        self.router = Router(
            Fleet(catalog=catalog, runtimes=runtimes, **rules),
            self.ledger,
            None,
            self.telemetry,
            cache,
        )

    def make_body(self, **changes: object) -> bytes:
        """Return the body of a request for a chat, with ``changes`` of its members."""
        messages = [{"role": "user", "content": "hello"}]
        return json.dumps(
            {"model": "auto", "max_tokens": 50, "messages": messages, **changes}
        ).encode()

    async def ask(
        self,
        codec: ProtocolCodec | None = None,
        *,
        owner: str = "ada",
        headers: Iterable[tuple[bytes, bytes]] = (),
        **changes: object,
    ) -> Answer:
        codec = codec or OpenAICodec()
        parsed_request = codec.parse(self.make_body(**changes))
        context = RoutingContext(request_id="r1", owner=owner, headers=headers)
        return await self.router.answer(codec, parsed_request, context)


async def read_stream(answer: Answer) -> bytes:
    assert answer.stream is not None
    return b"".join([piece async for piece in answer.stream])
