"""Defines the rules in ``user_config``: aliases, tenants, routing and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from deployments.models.judge_config import JudgeConfig
from moyin.text.judging.rules import JUDGE_OWNER
from moyin.text.quality.embedder import find_package_folder
from moyin.text.routing.catalog import (
    ANY_TENANT,
    UNRESTRICTED,
    Alias,
    CachingPolicy,
    HedgingPolicy,
    RescuePolicy,
    TenantPolicy,
)

__all__ = [
    "AliasConfig",
    "CacheConfig",
    "HedgeConfig",
    "ImagesConfig",
    "Place",
    "RoutingConfig",
    "TenantConfig",
    "hedging_of",
    "policies_of",
]

# A place where data is processed, such as on-premises, cloud or eu.
Place = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]


# YAML reads an unquoted `off` as false.
RescueSetting = Annotated[
    RescuePolicy, BeforeValidator(lambda value: RescuePolicy.OFF if value is False else value)
]
# The value of a hundred seconds of waiting at the default `usd_per_second`, about the time in which a
# user notices a useless answer and asks again. At this value a model of 135M parameters answers only
# greetings, while a local 8B model keeps easy work and long texts (table in docs/routing.md).
DEFAULT_BAD_ANSWER = 0.002


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HedgeConfig(_Config):
    """Configures hedged requests.

    A second back end gets the request if the first has not begun its stream within its 95th
    percentile of the time to the first token.

    Attributes:
        share: largest share of streamed requests that are hedged. A hedged prompt is paid twice.
    """

    share: float = Field(0.02, gt=0, le=0.5)


class CacheConfig(_Config):
    """Configures the cache of answers to identical requests of the same tenant.

    Attributes:
        ttl_s: seconds until an answer expires.
        max_bytes: size limit of an answer; longer answers are not cached.
        entries: number of answers per tenant; the oldest is evicted first.
    """

    ttl_s: int = Field(3_600, ge=1, le=30 * 86_400)
    max_bytes: int = Field(64 * 1024, ge=1, le=4 * 1024 * 1024)
    entries: int = Field(1_000, ge=1, le=100_000)

    def caching(self) -> CachingPolicy:
        return CachingPolicy(ttl=self.ttl_s, max_bytes=self.max_bytes, max_entries=self.entries)


class AliasConfig(_Config):
    """Defines a name for several models; the model with the lowest score answers.

    A plain list is short for ``models``. Without models, the alias includes all of at least the tier
    ``quality``.

    Attributes:
        residency: places where the data may be processed; empty: anywhere.
        usd_per_second, rescue, hold_streams, explore, hedge: override ``routing`` unless None.
        usd_per_bad_answer: cost of a useless answer; None: the tenant's, else the one of ``routing``.
        cache: None: answers are not cached.
    """

    models: tuple[str, ...] = ()
    quality: int = 0
    residency: tuple[Place, ...] = ()
    usd_per_second: float | None = Field(None, ge=0, allow_inf_nan=False)
    usd_per_bad_answer: float | None = Field(None, ge=0, allow_inf_nan=False)
    rescue: RescueSetting | None = None
    hold_streams: bool | None = None
    explore: float | None = Field(None, ge=0, le=0.5)
    hedge: HedgeConfig | None = None
    cache: CacheConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand_list(cls, value: Any) -> Any:
        return {"models": value} if isinstance(value, list | tuple) else value

    def alias(self) -> Alias:
        return Alias(
            models=self.models,
            quality=self.quality,
            residency=self.residency,
            usd_per_second=self.usd_per_second,
            usd_per_bad_answer=self.usd_per_bad_answer,
            rescue=self.rescue,
            hold_streams=self.hold_streams,
            explore=self.explore,
            hedging=hedging_of(self.hedge),
            cache=None if self.cache is None else self.cache.caching(),
        )


class TenantConfig(_Config):
    """Restricts one tenant.

    Attributes:
        residency: places where its data may be processed; empty: anywhere.
        models: aliases and models that it may use; empty: all.
        usd_per_bad_answer: cost of a useless answer, unless the alias sets one; None: the one of
            ``routing``.
        judge: allow the judge to see the tenant's answers; None: the value for ``*``, which is true
            unless set.
    """

    residency: tuple[Place, ...] = ()
    models: tuple[str, ...] = ()
    usd_per_bad_answer: float | None = Field(None, ge=0, allow_inf_nan=False)
    judge: bool | None = None

    def policy(self, *, judged: bool = True) -> TenantPolicy:
        """Return the tenant's policy; ``judged`` applies if the tenant does not set ``judge``."""
        return TenantPolicy(
            residency=frozenset(self.residency) if self.residency else None,
            names=frozenset(self.models) if self.models else None,
            usd_per_bad_answer=self.usd_per_bad_answer,
            is_judged=judged if self.judge is None else self.judge,
        )


class RoutingConfig(_Config):
    """Configures the router. Aliases and tenants may override some settings.

    Attributes:
        usd_per_second: value of a second of waiting; 0: waiting time does not count.
        usd_per_bad_answer: cost of a useless answer; 0: quality does not count.
        max_usd_per_bad_answer: largest value that a client may send in the header
            ``x-moyin-usd-per-bad-answer``; None: no limit.
        rescue: send a request to a better model if the answer fails a check: ``off``, ``checked``
            (every request), or ``schema`` (requests with a schema, JSON mode or tools). Only the
            beginning of a stream is checked.
        hold_streams: check whole streams of requests with a schema, JSON mode or tools. The client
            receives such a stream when it is complete or longer than 256 KiB.
        explore: share of requests that may try a model with little data. It pays if answers are rated
            or judged; the simulated month uses 0.05.
        share_levels: give a tenant without signals the level that other tenants learned: one number
            per model and kind of request, the median over at least five tenants.
        embedder: also learn from the meaning of prompts, which takes 30 to 600 microseconds a
            prompt: ``wordllama``, from the extra ``embedder``. None: learn from words only.
        timeout_s: time limit of a whole call, fallbacks included.
        hedge: None: no request is hedged.
        judge: None: no answers are judged.
    """

    usd_per_second: float = Field(0.00002, ge=0)
    usd_per_bad_answer: float = Field(DEFAULT_BAD_ANSWER, ge=0, allow_inf_nan=False)
    max_usd_per_bad_answer: float | None = Field(None, gt=0, allow_inf_nan=False)
    rescue: RescueSetting = RescuePolicy.CHECKED
    hold_streams: bool = False
    explore: float = Field(0.0, ge=0, le=0.5)
    share_levels: bool = True
    embedder: Literal["wordllama"] | None = None
    timeout_s: float = Field(600, gt=0)
    hedge: HedgeConfig | None = None
    judge: JudgeConfig | None = None

    @field_validator("embedder")
    @classmethod
    def _check_installed(cls, name: str | None) -> str | None:
        if name is not None:
            find_package_folder(name)
        return name


class ImagesConfig(_Config):
    """Configures ``POST /v1/images/generations``.

    Attributes:
        timeout_s: longest wait of a request for its pictures; the job continues afterwards.
        link_seconds: seconds for which URLs of pictures are valid.
    """

    timeout_s: float = Field(120, gt=0, le=3_600)
    link_seconds: float = Field(3_600, gt=0, le=604_800)


def hedging_of(config: HedgeConfig | None) -> HedgingPolicy | None:
    return None if config is None else HedgingPolicy(share=config.share)


def policies_of(tenants: Mapping[str, TenantConfig]) -> dict[str, TenantPolicy]:
    """Return the policies of all tenants and of the judge.

    The judge's own is unrestricted: each of its calls follows the policy of the tenant whose answers
    it compares.
    """
    everybody = tenants.get(ANY_TENANT)
    judged = everybody is None or everybody.judge is not False
    policies = {owner: tenant.policy(judged=judged) for owner, tenant in tenants.items()}
    return {**policies, JUDGE_OWNER: UNRESTRICTED}
