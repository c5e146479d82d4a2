"""Builds the router's fleet of back ends from the ``user_config`` of the app ``models``."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast
from urllib.parse import urlencode

from actors.llama import LlamaSpec
from deployments.models.config import (
    CLAUDE_URL,
    MODEL_NAME_PATTERN,
    AnthropicConfig,
    BackendConfig,
    LlamaConfig,
    ModelsConfig,
    ModelSettings,
    OllamaConfig,
    OllamaModelConfig,
    OpenAIConfig,
)
from deployments.models.llama import LlamaBackend, LlamaEndpoints
from deployments.models.routing_config import build_policies, to_hedging
from moyin.domain.backend import ApiFormat, ModelBackend
from moyin.domain.model_file import ModelFile
from moyin.domain.needs import Model
from moyin.http.breaker import Breaker, BreakerState
from moyin.settings import Settings
from moyin.system.slots import Slots
from moyin.text.backends.batches import BatchApi
from moyin.text.backends.http import Endpoint, FixedEndpoint
from moyin.text.backends.learned_limit import LearnedLimit
from moyin.text.backends.ollama import DEFAULT_CONTEXT, OllamaBackend
from moyin.text.backends.ollama_models import HostModels, add_default_tag
from moyin.text.backends.openai import OPENAI_URL, OpenAIBackend
from moyin.text.quality.abilities import Ability, create_tier_ability, look_up_ability
from moyin.text.quality.embedder import load_embedder
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import LATEST_TAG, Catalog, ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.loaded_models import LoadedModels
from moyin.text.routing.telemetry import NoTelemetry, Telemetry

if TYPE_CHECKING:
    from moyin.text.backends.anthropic import AnthropicBackend

_log = logging.getLogger(__name__)
_IDLE_CHECK_SECONDS = 0.5
# Assumed until a load was measured: an SSD's bytes per second, and the seconds to load a model of
# unknown size.
_LOADED_BYTES_PER_SECOND = 1e9
_LOAD_SECONDS = 1.0
_MODEL_NAME = re.compile(MODEL_NAME_PATTERN)
# These services check JSON schemas themselves, and accept larger schemas than Moyin does.
_CLOUD_URLS = frozenset({OPENAI_URL, CLAUDE_URL})
_CLAUDE_KEY_VARIABLE = "ANTHROPIC_API_KEY"


# Telemetry uses OpenTelemetry's names of providers, which equal the other types of back ends.
_PROVIDERS = {"llamacpp": "llama_cpp"}
_API_FORMATS = {
    "llamacpp": ApiFormat.OPENAI,
    "openai": ApiFormat.OPENAI,
    "anthropic": ApiFormat.ANTHROPIC,
    "ollama": ApiFormat.OLLAMA,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _ServerPlan:
    """The configuration of one server of a back end.

    A server whose configuration has not changed keeps its `BackendRuntime`, which calls the server.

    Attributes:
        name: name of the server's `BackendRuntime`, unique in the fleet.
        key: API key for the server; empty if the server needs none, None if the key is missing.
    """

    name: str
    config: BackendConfig
    url: str = ""
    key: str | None = ""


class _Abilities(TypedDict):
    """The attributes of a `Model` that state its abilities."""

    tools: bool
    vision: bool
    schema: bool
    thinking: bool
    embeddings: bool
    chat: bool | None


class FleetBuilder:
    """Builds the fleet again after each change, and reuses the back ends that did not change.

    Args:
        environment: environment variables, which may contain API keys.
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
        self._runtimes: dict[_ServerPlan, BackendRuntime] = {}
        # The models by URL of the Ollama host, so that they are kept when the configuration
        # changes.
        self._host_models: dict[str, HostModels] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def build(self, config: ModelsConfig) -> Fleet:
        """Build the fleet that ``config`` and the models on the servers describe.

        Back ends that did not change since the last call are reused. Removed and changed back ends
        are closed when their last request ends.
        """
        plans = [plan for backend in config.backends for plan in self._plan_servers(backend)]
        self._host_models = {
            plan.url: self._host_models.get(plan.url) or HostModels()
            for plan in plans
            if isinstance(plan.config, OllamaConfig)
        }
        runtimes = {
            plan: self._runtimes.get(plan) or self._new_runtime(plan)
            for plan in plans
            if plan.key is not None
        }
        for plan, runtime in runtimes.items():
            if plan.config.server_count > 1:
                runtime.peers = [
                    peer
                    for other_plan, peer in runtimes.items()
                    if other_plan.config == plan.config
                ]
        current_names = {plan.name for plan in runtimes}
        for plan, runtime in self._runtimes.items():
            if plan not in runtimes:
                self._close_later(runtime)
            if plan.name not in current_names:
                self._telemetry.forget_backend(plan.name)
        self._runtimes = runtimes
        deployments = [
            deployment for plan in plans for deployment in self._iterate_deployments(plan)
        ]
        for runtime in runtimes.values():
            runtime.slots.background_share = config.batches.share
        routing = config.routing
        max_usd = routing.max_usd_per_bad_answer
        aliases = {name: alias.to_alias() for name, alias in config.aliases.items()}
        return Fleet(
            catalog=Catalog(deployments=tuple(deployments), aliases=aliases),
            runtimes={plan.name: runtime for plan, runtime in runtimes.items()},
            policies=build_policies(config.tenants),
            usd_per_second=routing.usd_per_second,
            usd_per_bad_answer=routing.usd_per_bad_answer,
            rescue=routing.rescue,
            hold_streams=routing.hold_streams,
            explore=routing.explore,
            max_usd_per_bad_answer=math.inf if max_usd is None else max_usd,
            hedging=to_hedging(routing.hedge),
            timeout=routing.timeout_s,
            embed=None if routing.embedder is None else load_embedder(routing.embedder),
        )

    async def close(self) -> None:
        """Close all back ends without waiting for their requests."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for runtime in self._runtimes.values():
            await runtime.backend.close()

    def _plan_servers(self, config: BackendConfig) -> Iterator[_ServerPlan]:
        match config:
            case LlamaConfig():
                for name in config.server_names:
                    yield _ServerPlan(name=name, config=config)
            case OllamaConfig():
                for name, host in zip(config.server_names, config.hosts, strict=True):
                    yield _ServerPlan(name=name, config=config, url=host)
            case OpenAIConfig():
                key_variable = config.api_key_env
                key = self._environment.get(key_variable) or None if key_variable else ""
                yield _ServerPlan(name=config.name, config=config, url=config.base_url, key=key)
            case AnthropicConfig():
                key = self._find_claude_key(config) or None
                yield _ServerPlan(name=config.name, config=config, url=config.base_url, key=key)

    def _iterate_deployments(self, plan: _ServerPlan) -> Iterator[ModelDeployment]:
        config = plan.config
        if not isinstance(config, OllamaConfig):
            for model in config.models:
                yield _new_deployment(plan, model, context=model.context)
            return
        host_models = self._host_models[plan.url]
        for listed_model in config.models:
            file = host_models.find(listed_model.upstream or listed_model.name)
            context = listed_model.context or (file.context if file is not None else None)
            if context is not None:
                yield _new_deployment(plan, listed_model, context=context, file=file)
        if config.is_discovering:
            # A configured model keeps its name, even if another model on the disk has the same
            # name.
            names = {
                add_default_tag(name)
                for model in config.models
                for name in (model.name, model.upstream or model.name)
            }
            for file in (host_models.files or {}).values():
                if file.name not in names and _is_servable(file):
                    name = file.name.removesuffix(LATEST_TAG)
                    discovered_model = OllamaModelConfig(name=name, upstream=file.name)
                    context = file.context or DEFAULT_CONTEXT
                    yield _new_deployment(plan, discovered_model, context=context, file=file)

    def _find_claude_key(self, config: AnthropicConfig) -> str:
        if config.api_key_env is not None:
            return self._environment.get(config.api_key_env, "")
        return self._settings.anthropic_api_key or self._environment.get(_CLAUDE_KEY_VARIABLE, "")

    def _new_runtime(self, plan: _ServerPlan) -> BackendRuntime:
        host_models = self._host_models.get(plan.url)
        config, telemetry = plan.config, self._telemetry
        slots = Slots(config.max_calls, max_waiting=config.queue, patience=config.max_wait_s)
        backend = _new_backend(plan, host_models, slots)
        telemetry.record_breaker_state(plan.name, BreakerState.CLOSED)
        return BackendRuntime(
            name=plan.name,
            backend=backend,
            pass_through=backend,
            operations=backend if isinstance(backend, OpenAIBackend) else None,
            timeout=config.timeout_s,
            breaker=Breaker(
                time.monotonic,
                on_change=lambda state: telemetry.record_breaker_state(plan.name, state),
            ),
            slots=slots,
            first_byte_timeout=config.first_byte_s,
            retries=config.retries,
            provider=_PROVIDERS.get(config.type, config.type),
            checks_schemas=plan.url not in _CLOUD_URLS,
            loaded=_new_loaded_models(config, backend, host_models),
            refresh_models=backend.refresh_models if isinstance(backend, OllamaBackend) else None,
            priors={model.name: model.latency_prior for model in config.models},
            batch_api=_find_batch_api(config, backend),
        )

    def _close_later(self, runtime: BackendRuntime) -> None:
        task = asyncio.create_task(_close_when_idle(runtime))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _close_when_idle(runtime: BackendRuntime) -> None:
    # Polling is cheaper than an event: requests are frequent and configuration changes are rare.
    while runtime.load:  # noqa: ASYNC110
        await asyncio.sleep(_IDLE_CHECK_SECONDS)
    await runtime.backend.close()
    _log.info("closed the back end %s, which was changed or removed", runtime.name)


def _new_backend(
    plan: _ServerPlan, host_models: HostModels | None, slots: Slots
) -> LlamaBackend | OllamaBackend | OpenAIBackend | AnthropicBackend:
    config, connections = plan.config, plan.config.connections
    endpoint = _new_endpoint(plan)
    match config:
        case LlamaConfig():
            endpoints = LlamaEndpoints(plan.name, _new_llama_spec(config))
            return LlamaBackend(
                endpoints, connections=connections, prompt_cache=config.prompt_cache
            )
        case OllamaConfig():
            contexts = {
                model.upstream or model.name: model.context
                for model in config.models
                if model.context is not None
            }
            learned_limit = (
                LearnedLimit(slots, max_limit=connections) if config.parallel == "auto" else None
            )
            return OllamaBackend(
                plan.url,
                contexts=contexts,
                max_connections=connections,
                models=host_models,
                limit=learned_limit,
            )
        case OpenAIConfig():
            return OpenAIBackend(
                FixedEndpoint(endpoint),
                max_connections=connections,
                auth_header=config.auth_header,
                health_path=config.health_path,
                prompt_cache=config.prompt_cache,
            )
        case AnthropicConfig():
            # Importing the SDK takes a second, and most replicas do not need it.
            from moyin.text.backends.anthropic import AnthropicBackend

            return AnthropicBackend(
                endpoint, max_connections=connections, auth_header=config.auth_header
            )


def _new_endpoint(plan: _ServerPlan) -> Endpoint:
    config, key = plan.config, plan.key or ""
    match config:
        case OpenAIConfig():
            query = urlencode(config.query)
            return Endpoint(url=plan.url, key=key, headers=config.headers, query=query)
        case AnthropicConfig():
            return Endpoint(url=plan.url, key=key, headers=config.headers)
    return Endpoint(url=plan.url, key=key)


def _find_batch_api(config: BackendConfig, backend: ModelBackend) -> BatchApi | None:
    """Return the client of the back end's batch API; None if the configuration does not use it."""
    return getattr(backend, "batches", None) if config.uses_batch_api else None


def _new_llama_spec(config: LlamaConfig) -> LlamaSpec:
    model, server = config.models[0], config.server
    return LlamaSpec(
        gguf=str(server.gguf) if server.gguf is not None else None,
        alias=model.upstream or model.name,
        context=model.context,
        **server.model_dump(include={"parallel", "cpus", "gpus", "threads"}),
        embeddings=model.embeddings,
        prompt_cache=config.prompt_cache,
    )


def _new_loaded_models(
    config: BackendConfig, backend: ModelBackend, host_models: HostModels | None
) -> LoadedModels | None:
    if not isinstance(config, OllamaConfig) or not isinstance(backend, OllamaBackend):
        return None

    def estimate_load_seconds(model: str) -> float:
        if config.load_s is not None:
            return config.load_s
        file = host_models.find(model) if host_models is not None else None
        return file.size / _LOADED_BYTES_PER_SECOND if file is not None else _LOAD_SECONDS

    return LoadedModels(
        backend.list_resident_models, load_seconds=estimate_load_seconds, clock=time.monotonic
    )


def _is_servable(file: ModelFile) -> bool:
    """Return True if the model chats or computes embeddings, and its name can be part of a URL."""
    return bool(file.capabilities & {"completion", "embedding"}) and (
        _MODEL_NAME.fullmatch(file.name) is not None
    )


def _find_abilities(model: ModelSettings, file: ModelFile | None) -> _Abilities:
    """Return the abilities that the configuration sets, else those that the server reports."""
    abilities = _Abilities(
        tools=model.tools,
        vision=model.vision,
        schema=model.schema_,
        thinking=model.thinking,
        embeddings=model.embeddings,
        chat=model.answers_chats,
    )
    if file is None:
        return abilities
    reported_abilities = _Abilities(
        tools="tools" in file.capabilities,
        vision="vision" in file.capabilities,
        thinking="thinking" in file.capabilities,
        # Ollama can enforce a schema for every model, and compute embeddings with every model.
        schema=True,
        embeddings=True,
        chat="completion" in file.capabilities,
    )
    configured_names = {name.rstrip("_") for name in model.model_fields_set}
    configured_abilities = {
        name: value for name, value in abilities.items() if name in configured_names
    }
    return cast(_Abilities, reported_abilities | configured_abilities)


def _new_deployment(
    plan: _ServerPlan, model: ModelSettings, *, context: int, file: ModelFile | None = None
) -> ModelDeployment:
    return ModelDeployment(
        backend=plan.name,
        model=Model(
            name=model.name,
            upstream=model.upstream or model.name,
            context=context,
            tariff=plan.config.find_tariff(model),
            **_find_abilities(model, file),
            operations=frozenset(model.abilities),
            unit_rates=model.unit_rates,
            quality=model.quality,
            gpu=model.gpu_rate,
        ),
        family=plan.config.name,
        omitted_abilities=model.omit,
        residency=plan.config.residency,
        api_format=_API_FORMATS[plan.config.type],
        configured=plan.key is not None,
        key_env=_find_key_variable(plan.config),
        ability=_find_ability(model),
        file=file,
        batch_tariff=plan.config.find_batch_tariff(model),
    )


def _find_ability(model: ModelSettings) -> Ability | None:
    """Return the expected quality of a model's answers; None if it is unknown.

    It is the quality of the known model that ``like`` names or, if that is not set, of the known
    model with the same name. For other models, the quality tier determines it.
    """
    if model.like is not None:
        return look_up_ability(model.like)
    known_ability = look_up_ability(model.upstream or model.name) or look_up_ability(model.name)
    if known_ability is None and "quality" in model.model_fields_set:
        return create_tier_ability(model.quality)
    return known_ability


def _find_key_variable(config: BackendConfig) -> str:
    match config:
        case AnthropicConfig():
            return config.api_key_env or _CLAUDE_KEY_VARIABLE
        case OpenAIConfig():
            return config.api_key_env or ""
    return ""
