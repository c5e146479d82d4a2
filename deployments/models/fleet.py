"""From the configuration to the fleet, keeping the back ends that did not change."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actors.llama import LlamaSpec
from deployments.models.config import (
    AnthropicConfig,
    BackendConfig,
    LlamaConfig,
    ModelConfig,
    ModelsConfig,
    OllamaConfig,
    OpenAIConfig,
)
from deployments.models.llama import LlamaBackend, LlamaEndpoints
from moyin.backends.anthropic import AnthropicBackend
from moyin.backends.endpoint import Endpoint, Fixed
from moyin.backends.ollama import OllamaBackend
from moyin.backends.openai import OpenAIBackend
from moyin.domain.backend import ModelBackend, PassThrough, Wire
from moyin.domain.needs import Model
from moyin.routing.breaker import Breaker
from moyin.routing.catalog import Alias, Catalog, Offer
from moyin.routing.fleet import Fleet
from moyin.routing.lane import Lane
from moyin.settings import Settings

__all__ = ["Garage"]

_log = logging.getLogger(__name__)
_RETIREMENT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """A lane that the configuration asks for. Equal plans are the same lane.

    Attributes:
        key: secret of the back end; None: it needs one and has none.
    """

    name: str
    config: BackendConfig
    url: str = ""
    key: str | None = ""


class Garage:
    """Builds back ends and takes them out of service. Used from one event loop."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._environment = environment
        self._lanes: dict[_Plan, Lane] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def build(self, config: ModelsConfig) -> Fleet:
        """The fleet of ``config``. Lanes that an earlier one had, unchanged, go on as they are;
        others retire when their last request ends."""
        plans = [plan for backend in config.backends for plan in self._plans(backend)]
        lanes = {
            plan: self._lanes.get(plan) or _lane(plan) for plan in plans if plan.key is not None
        }
        for plan, lane in self._lanes.items():
            if plan not in lanes:
                self._retire(lane)
        self._lanes = lanes
        offers = [_offer(plan, model) for plan in plans for model in plan.config.models]
        aliases = {
            name: Alias(models=alias.models, quality=alias.quality)
            for name, alias in config.aliases.items()
        }
        return Fleet(
            catalog=Catalog(offers=tuple(offers), aliases=aliases),
            lanes={plan.name: lane for plan, lane in lanes.items()},
        )

    async def close(self) -> None:
        """Close all connections, at once."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for lane in self._lanes.values():
            await lane.backend.close()

    def _plans(self, config: BackendConfig) -> Iterator[_Plan]:
        match config:
            case LlamaConfig():
                yield _Plan(name=config.name, config=config)
            case OllamaConfig(hosts=hosts):
                for number, host in enumerate(hosts):
                    name = config.name if len(hosts) == 1 else f"{config.name}-{number}"
                    yield _Plan(name=name, config=config, url=host)
            case OpenAIConfig():
                variable = config.api_key_env
                key = self._environment.get(variable) or None if variable else ""
                yield _Plan(name=config.name, config=config, url=config.base_url, key=key)
            case AnthropicConfig():
                key = self._claude_key(config) or None
                yield _Plan(name=config.name, config=config, url=config.base_url, key=key)

    def _claude_key(self, config: AnthropicConfig) -> str:
        if config.api_key_env is not None:
            return self._environment.get(config.api_key_env, "")
        return self._settings.anthropic_api_key or self._environment.get("ANTHROPIC_API_KEY", "")

    def _retire(self, lane: Lane) -> None:
        task = asyncio.create_task(_close_when_idle(lane))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _close_when_idle(lane: Lane) -> None:
    # Requests are many and retirements few: the lane need not tell when it is idle.
    while lane.load:  # noqa: ASYNC110
        await asyncio.sleep(_RETIREMENT_SECONDS)
    await lane.backend.close()
    _log.info("back end %s is out of service", lane.name)


def _lane(plan: _Plan) -> Lane:
    backend, passes = _backend(plan)
    return Lane(
        name=plan.name,
        backend=backend,
        passes=passes,
        timeout=plan.config.timeout_s,
        breaker=Breaker(time.monotonic),
    )


def _backend(plan: _Plan) -> tuple[ModelBackend, PassThrough | None]:
    config, connections = plan.config, plan.config.connections
    endpoint = Endpoint(url=plan.url, key=plan.key or "")
    match config:
        case LlamaConfig():
            endpoints = LlamaEndpoints(config.name, _spec(config))
            llama = LlamaBackend(endpoints, connections=connections)
            return llama, llama
        case OllamaConfig():
            contexts = {model.upstream or model.name: model.context for model in config.models}
            return OllamaBackend(plan.url, contexts=contexts, connections=connections), None
        case OpenAIConfig():
            server = OpenAIBackend(Fixed(endpoint), connections=connections)
            return server, server
        case AnthropicConfig():
            claude = AnthropicBackend(endpoint, connections=connections)
            return claude, claude


def _spec(config: LlamaConfig) -> LlamaSpec:
    model, server = config.models[0], config.server
    return LlamaSpec(
        gguf=str(server.gguf) if server.gguf is not None else None,
        alias=model.upstream or model.name,
        context=model.context,
        parallel=server.parallel,
        cpus=server.cpus,
        gpus=server.gpus,
        threads=server.threads,
    )


_WIRES = {
    "llamacpp": Wire.OPENAI,
    "openai": Wire.OPENAI,
    "anthropic": Wire.ANTHROPIC,
    "ollama": None,
}


def _offer(plan: _Plan, model: ModelConfig) -> Offer:
    return Offer(
        backend=plan.name,
        model=Model(
            name=model.name,
            upstream=model.upstream or model.name,
            context=model.context,
            tariff=plan.config.tariff(model),
            tools=model.tools,
            vision=model.vision,
            schema=model.schema_,
            quality=model.quality,
        ),
        wire=_WIRES[plan.config.type],
        configured=plan.key is not None,
    )
