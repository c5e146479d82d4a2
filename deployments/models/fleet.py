"""Builds the fleet from the configuration and keeps back ends that did not change."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actors.llama import LlamaSpec
from deployments.models.config import (
    CLAUDE_URL,
    AnthropicConfig,
    BackendConfig,
    LlamaConfig,
    ModelConfig,
    ModelsConfig,
    OllamaConfig,
    OpenAIConfig,
)
from deployments.models.llama import LlamaBackend, LlamaEndpoints
from deployments.models.rules import hedging_of, policies_of
from moyin.domain.backend import ApiFormat, ModelBackend, PassThroughBackend
from moyin.domain.needs import Model
from moyin.http.breaker import Breaker, BreakerState
from moyin.settings import Settings
from moyin.system.slots import Slots
from moyin.text.backends.http import Endpoint, FixedEndpoint
from moyin.text.backends.ollama import OllamaBackend
from moyin.text.backends.openai import OPENAI_URL, OpenAIBackend
from moyin.text.quality.abilities import Ability, create_tier_ability, look_up_ability
from moyin.text.quality.embedder import load_embedder
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import Catalog, ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.loaded_models import LoadedModels
from moyin.text.routing.telemetry import NoTelemetry, Telemetry

__all__ = ["FleetBuilder"]

_log = logging.getLogger(__name__)
_RETIREMENT_SECONDS = 0.5
# These services limit the size of JSON schemas themselves, with higher limits than ours.
_CLOUDS = frozenset({OPENAI_URL, CLAUDE_URL})
_CLAUDE_KEY = "ANTHROPIC_API_KEY"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """Describes one configured server of a back end. Equal plans share one `BackendRuntime`.

    Attributes:
        key: API key of the back end; empty if it needs none, None if its key is missing.
    """

    name: str
    config: BackendConfig
    url: str = ""
    key: str | None = ""


class FleetBuilder:
    """Builds back ends and retires removed ones. Used from one event loop.

    Args:
        telemetry: records the state of every back end's circuit breaker.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str] = os.environ,
        *,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._telemetry = telemetry or NoTelemetry()
        self._runtimes: dict[_Plan, BackendRuntime] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def build(self, config: ModelsConfig) -> Fleet:
        """Build the fleet of ``config``.

        Back ends that did not change since the last call are kept. Removed and changed ones are
        closed when their last request ends.
        """
        plans = [plan for backend in config.backends for plan in self._plans(backend)]
        runtimes = {
            plan: self._runtimes.get(plan) or self._runtime(plan)
            for plan in plans
            if plan.key is not None
        }
        names = {plan.name for plan in runtimes}
        for plan, runtime in self._runtimes.items():
            if plan not in runtimes:
                self._retire(runtime)
            if plan.name not in names:
                self._telemetry.forget_backend(plan.name)
        self._runtimes = runtimes
        deployments = [_deployment(plan, model) for plan in plans for model in plan.config.models]
        most = config.routing.max_usd_per_bad_answer
        embedder = config.routing.embedder
        aliases = {name: alias.alias() for name, alias in config.aliases.items()}
        return Fleet(
            catalog=Catalog(deployments=tuple(deployments), aliases=aliases),
            runtimes={plan.name: runtime for plan, runtime in runtimes.items()},
            policies=policies_of(config.tenants),
            usd_per_second=config.routing.usd_per_second,
            usd_per_bad_answer=config.routing.usd_per_bad_answer,
            rescue=config.routing.rescue,
            hold_streams=config.routing.hold_streams,
            explore=config.routing.explore,
            max_usd_per_bad_answer=math.inf if most is None else most,
            hedging=hedging_of(config.routing.hedge),
            timeout=config.routing.timeout_s,
            embed=None if embedder is None else load_embedder(embedder),
        )

    async def close(self) -> None:
        """Close all back ends without waiting for their requests."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for runtime in self._runtimes.values():
            await runtime.backend.close()

    def _plans(self, config: BackendConfig) -> Iterator[_Plan]:
        match config:
            case LlamaConfig():
                for name in config.runtime_names:
                    yield _Plan(name=name, config=config)
            case OllamaConfig():
                for name, host in zip(config.runtime_names, config.hosts, strict=True):
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
        return self._settings.anthropic_api_key or self._environment.get(_CLAUDE_KEY, "")

    def _runtime(self, plan: _Plan) -> BackendRuntime:
        backend, pass_through = _backend(plan)
        config, telemetry = plan.config, self._telemetry
        telemetry.record_breaker_state(plan.name, BreakerState.CLOSED)
        return BackendRuntime(
            name=plan.name,
            backend=backend,
            pass_through=pass_through,
            timeout=config.timeout_s,
            breaker=Breaker(
                time.monotonic,
                on_change=lambda state: telemetry.record_breaker_state(plan.name, state),
            ),
            slots=Slots(config.limit, queue=config.queue, patience=config.max_wait_s),
            first_byte_timeout=config.first_byte_s,
            retries=config.retries,
            provider=_PROVIDERS[config.type],
            checks_schemas=plan.url not in _CLOUDS,
            loaded=_loaded(config, backend),
            priors={model.name: model.latency for model in config.models},
        )

    def _retire(self, runtime: BackendRuntime) -> None:
        task = asyncio.create_task(_close_when_idle(runtime))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _close_when_idle(runtime: BackendRuntime) -> None:
    # Polling is cheaper than an event: requests are frequent and configuration changes are rare.
    while runtime.load:  # noqa: ASYNC110
        await asyncio.sleep(_RETIREMENT_SECONDS)
    await runtime.backend.close()
    _log.info("back end %s is out of service", runtime.name)


def _backend(plan: _Plan) -> tuple[ModelBackend, PassThroughBackend | None]:
    config, connections = plan.config, plan.config.connections
    endpoint = Endpoint(url=plan.url, key=plan.key or "")
    match config:
        case LlamaConfig():
            endpoints = LlamaEndpoints(plan.name, _spec(config))
            llama = LlamaBackend(
                endpoints, connections=connections, prompt_cache=config.prompt_cache
            )
            return llama, llama
        case OllamaConfig():
            contexts = {model.upstream or model.name: model.context for model in config.models}
            host = OllamaBackend(plan.url, contexts=contexts, connections=connections)
            return host, host
        case OpenAIConfig():
            server = OpenAIBackend(
                FixedEndpoint(endpoint), connections=connections, prompt_cache=config.prompt_cache
            )
            return server, server
        case AnthropicConfig():
            # Imported here because the SDK takes a second to import; most replicas do not need it.
            from moyin.text.backends.anthropic import AnthropicBackend

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
        embeddings=model.embeddings,
        prompt_cache=config.prompt_cache,
    )


def _loaded(config: BackendConfig, backend: ModelBackend) -> LoadedModels | None:
    if not isinstance(config, OllamaConfig) or not isinstance(backend, OllamaBackend):
        return None
    return LoadedModels(
        backend.list_resident_models, load_seconds=config.load_s, clock=time.monotonic
    )


# Provider names as OpenTelemetry defines them, where it does.
_PROVIDERS = {
    "llamacpp": "llama_cpp",
    "openai": "openai",
    "anthropic": "anthropic",
    "ollama": "ollama",
}
_WIRES = {
    "llamacpp": ApiFormat.OPENAI,
    "openai": ApiFormat.OPENAI,
    "anthropic": ApiFormat.ANTHROPIC,
    "ollama": ApiFormat.OLLAMA,
}


def _deployment(plan: _Plan, model: ModelConfig) -> ModelDeployment:
    return ModelDeployment(
        backend=plan.name,
        model=Model(
            name=model.name,
            upstream=model.upstream or model.name,
            context=model.context,
            tariff=plan.config.tariff(model),
            tools=model.tools,
            vision=model.vision,
            schema=model.schema_,
            thinking=model.thinking,
            embeddings=model.embeddings,
            quality=model.quality,
            gpu=model.gpu,
        ),
        family=plan.config.name,
        residency=plan.config.residency,
        api_format=_WIRES[plan.config.type],
        configured=plan.key is not None,
        key_env=_key_env(plan.config),
        ability=_ability(model),
    )


def _ability(model: ModelConfig) -> Ability | None:
    """Return the quality data of a model; None if there is none.

    The configured ``like`` comes first, then the model's names, then its configured tier.
    """
    if model.like is not None:
        return look_up_ability(model.like)
    known = look_up_ability(model.upstream or model.name) or look_up_ability(model.name)
    if known is None and "quality" in model.model_fields_set:
        return create_tier_ability(model.quality)
    return known


def _key_env(config: BackendConfig) -> str:
    match config:
        case AnthropicConfig():
            return config.api_key_env or _CLAUDE_KEY
        case OpenAIConfig():
            return config.api_key_env or ""
    return ""
