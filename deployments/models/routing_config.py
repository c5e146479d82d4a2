"""Defines the settings of aliases, tenants, routing and images in ``user_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from deployments.models.judge_config import JudgeConfig
from deployments.replicas import StrictModel
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

# Name of a place where data is processed, such as on-premises, cloud or eu.
Residency = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]
# YAML reads an unquoted `off` as false.
RescueSetting = Annotated[
    RescuePolicy, BeforeValidator(lambda value: RescuePolicy.OFF if value is False else value)
]
# This equals a hundred seconds of waiting at the default `usd_per_second`, about the time in which
# a user notices a useless answer and tries again. At this value a model of 135M parameters answers
# only greetings, while a local 8B model also gets easy work and long texts (table in
# docs/routing.md).
_DEFAULT_USD_PER_BAD_ANSWER = 0.002


class HedgeConfig(StrictModel):
    """Configures hedged requests.

    A second back end gets the request if the first back end has not begun its stream after the time
    within which it begins 95 % of its streams.

    Attributes:
        share: maximum share of streamed requests that are hedged. Each of these pays for its prompt
            twice.
    """

    share: float = Field(0.02, gt=0, le=0.5)


class CacheConfig(StrictModel):
    """Configures the cache of answers to identical requests of the same tenant.

    Attributes:
        ttl_s: seconds until an answer expires.
        max_bytes: size above which answers are not cached.
        entries: maximum number of answers per tenant; the oldest is evicted first.
    """

    ttl_s: int = Field(3_600, ge=1, le=30 * 86_400)
    max_bytes: int = Field(64 * 1024, ge=1, le=4 * 1024 * 1024)
    entries: int = Field(1_000, ge=1, le=100_000)

    def to_caching(self) -> CachingPolicy:
        return CachingPolicy(ttl=self.ttl_s, max_bytes=self.max_bytes, max_entries=self.entries)


OmittableAbility: TypeAlias = Literal["tools", "thinking"]


class AliasConfig(StrictModel):
    """Configures an alias: a name for several models, among which the router chooses.

    In ``user_config``, a list of model names is short for ``models``.

    Attributes:
        models: names of the models; if empty, all models.
        quality: minimum quality tier of the models.
        residency: places where data may be processed; if empty, anywhere.
        usd_per_second, rescue, hold_streams, explore, hedge: override ``routing`` unless None.
        usd_per_bad_answer: cost of a useless answer; overrides the tenant and ``routing`` unless
            None.
        cache: cache of answers; if None, answers are not cached.
        omit: what to drop from requests if no model of the alias supports it: ``tools``,
            ``thinking``. The response's header ``x-moyin-route`` names what was dropped. Other
            requests that no model supports are rejected.
    """

    models: tuple[str, ...] = ()
    quality: int = 0
    residency: tuple[Residency, ...] = ()
    usd_per_second: float | None = Field(None, ge=0, allow_inf_nan=False)
    usd_per_bad_answer: float | None = Field(None, ge=0, allow_inf_nan=False)
    rescue: RescueSetting | None = None
    hold_streams: bool | None = None
    explore: float | None = Field(None, ge=0, le=0.5)
    hedge: HedgeConfig | None = None
    cache: CacheConfig | None = None
    omit: frozenset[OmittableAbility] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _expand_model_list(cls, value: Any) -> Any:
        return {"models": value} if isinstance(value, list | tuple) else value

    def to_alias(self) -> Alias:
        settings = {name: value for name, value in self if name not in ("hedge", "cache", "omit")}
        return Alias(
            **settings,
            hedging=to_hedging(self.hedge),
            cache=None if self.cache is None else self.cache.to_caching(),
            omitted_abilities=self.omit,
        )


class TenantConfig(StrictModel):
    """Configures the restrictions of a tenant.

    Attributes:
        residency: places where the tenant's data may be processed; if empty, anywhere.
        models: aliases and models that the tenant may use; if empty, all.
        usd_per_bad_answer: cost of a useless answer if the alias sets none; overrides ``routing``
            unless None.
        judge: True if the judge may see the tenant's answers; if None, the value of the tenant
            ``*``, which is true by default.
    """

    residency: tuple[Residency, ...] = ()
    models: tuple[str, ...] = ()
    usd_per_bad_answer: float | None = Field(None, ge=0, allow_inf_nan=False)
    judge: bool | None = None

    def to_policy(self, *, is_judged_by_default: bool) -> TenantPolicy:
        """Return the tenant's policy.

        Args:
            is_judged_by_default: whether answers are judged if the tenant does not set ``judge``.
        """
        return TenantPolicy(
            residency=frozenset(self.residency) if self.residency else None,
            names=frozenset(self.models) if self.models else None,
            usd_per_bad_answer=self.usd_per_bad_answer,
            is_judged=is_judged_by_default if self.judge is None else self.judge,
        )


class RoutingConfig(StrictModel):
    """Configures the router. Aliases and tenants may override some settings.

    Attributes:
        usd_per_second: cost of a second of waiting; with 0, waiting has no influence.
        usd_per_bad_answer: cost of a useless answer; with 0, quality has no influence.
        max_usd_per_bad_answer: maximum value that a client may send in the header
            ``x-moyin-usd-per-bad-answer``; None for no limit.
        rescue: which requests are sent to a better model if the answer fails a check: none
            (``off``), all (``checked``), or those with a schema, JSON mode or tools (``schema``).
            Only the beginning of a stream is checked.
        hold_streams: True to check whole streams of requests with a schema, JSON mode or tools. The
            client receives such a stream when it is complete or longer than 256 KiB.
        explore: share of requests that may try a model with little data. This helps only if answers
            are rated or judged.
        share_levels: True to let a tenant without signals of its own use what the router learned
            from other tenants. This is one number per model and kind of request, the median over at
            least five tenants.
        embedder: ``wordllama``, from the extra ``embedder``, to learn from the meaning of prompts,
            which takes 30 to 600 microseconds per prompt; if None, the router learns from words
            only.
        timeout_s: time limit of a whole call, including fallbacks.
        hedge: hedged requests; if None, no request is hedged.
        judge: the judge; if None, no answers are judged.
    """

    usd_per_second: float = Field(0.00002, ge=0)
    usd_per_bad_answer: float = Field(_DEFAULT_USD_PER_BAD_ANSWER, ge=0, allow_inf_nan=False)
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
    def _check_embedder_installed(cls, name: str | None) -> str | None:
        if name is not None:
            find_package_folder(name)
        return name


class BatchesConfig(StrictModel):
    """Configures how batch lines share back ends with other calls.

    Attributes:
        share: maximum share of a back end's slots (`parallel`) that batch lines use. One line may
            run even if the share is less than one slot. The last free slot is left to other calls,
            unless the back end has only one slot.
        window: maximum number of lines of a batch that run or wait in a replica.
        open: maximum number of open batches of a tenant.
        poll_s: seconds between two polls of a native batch at its back end.
    """

    share: float = Field(0.5, gt=0, le=1)
    window: int = Field(32, ge=1, le=1_000)
    open: int = Field(50, ge=1)
    poll_s: float = Field(30, gt=0)


class ImagesConfig(StrictModel):
    """Configures ``POST /v1/images/generations``.

    Attributes:
        timeout_s: seconds that a request waits for its pictures; the job continues afterwards.
        link_seconds: seconds for which URLs of pictures are valid.
    """

    timeout_s: float = Field(120, gt=0, le=3_600)
    link_seconds: float = Field(3_600, gt=0, le=604_800)


def to_hedging(config: HedgeConfig | None) -> HedgingPolicy | None:
    return None if config is None else HedgingPolicy(share=config.share)


def build_policies(tenants: Mapping[str, TenantConfig]) -> dict[str, TenantPolicy]:
    """Return the policies of all tenants and of the judge, by owner.

    The judge's own policy has no restrictions, because each call of the judge follows the policy of
    the tenant whose answers it compares.
    """
    default_tenant = tenants.get(ANY_TENANT)
    is_judged_by_default = default_tenant is None or default_tenant.judge is not False
    policies = {
        owner: tenant.to_policy(is_judged_by_default=is_judged_by_default)
        for owner, tenant in tenants.items()
    }
    return {**policies, JUDGE_OWNER: UNRESTRICTED}
