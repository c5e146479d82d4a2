"""The rules in ``user_config``: aliases, tenants, and what the router weighs."""

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
from moyin.text.quality.embedder import package_folder
from moyin.text.routing.catalog import Alias, Caching, Hedging, Rescue
from moyin.text.routing.policy import ANY_TENANT, UNRESTRICTED, Policy

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

# Where data goes, such as on-premises, cloud or eu.
Place = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]


# YAML reads an unquoted `off` as false.
RescueSetting = Annotated[
    Rescue, BeforeValidator(lambda value: Rescue.OFF if value is False else value)
]
# A hundred seconds of waiting at the shipped `usd_per_second`: who gets a useless answer notices it and
# asks again. High enough that a model of 135M parameters answers greetings only, low enough that a local
# model of 8B keeps easy work and long texts: docs/routing.md has the table of choices.
DEFAULT_BAD_ANSWER = 0.002


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HedgeConfig(_Config):
    """Ask a second back end when the first has not begun a stream within the time in which
    nineteen of twenty do.

    Attributes:
        share: of streamed requests that may be asked twice, at most. Each costs twice the prompt.
    """

    share: float = Field(0.02, gt=0, le=0.5)


class CacheConfig(_Config):
    """Keep answers, and give them again to the same tenant for the same request.

    Attributes:
        max_bytes: of an answer; longer ones are not kept.
        entries: per tenant; the oldest goes first.
    """

    ttl_s: int = Field(3_600, ge=1, le=30 * 86_400)
    max_bytes: int = Field(64 * 1024, ge=1, le=4 * 1024 * 1024)
    entries: int = Field(1_000, ge=1, le=100_000)

    def caching(self) -> Caching:
        return Caching(ttl=self.ttl_s, max_bytes=self.max_bytes, max_entries=self.entries)


class AliasConfig(_Config):
    """A name for several models, of which the one with the lowest score answers. A list stands for
    ``models``; without models it means all of at least ``quality``.

    Attributes:
        residency: places where the data may go; empty: anywhere.
        usd_per_second, rescue, hold_streams, explore, hedge: None: as in ``routing``.
        usd_per_bad_answer: cost of a useless answer; None: the tenant's, else as in ``routing``.
        cache: None: answers are not kept.
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
    def _list(cls, value: Any) -> Any:
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
    """What one tenant may use; empty: everything.

    Attributes:
        residency: places where its data may go.
        models: the aliases and models that it may ask for.
        usd_per_bad_answer: cost of a useless answer, where an alias names none; None: as in
            ``routing``.
        judge: whether the judge of ``routing`` may look at its answers; None: as for ``*``, and
            there it may.
    """

    residency: tuple[Place, ...] = ()
    models: tuple[str, ...] = ()
    usd_per_bad_answer: float | None = Field(None, ge=0, allow_inf_nan=False)
    judge: bool | None = None

    def policy(self, *, judged: bool = True) -> Policy:
        """Return the tenant's policy; ``judged``: where it says nothing of the judge itself."""
        return Policy(
            residency=frozenset(self.residency) if self.residency else None,
            names=frozenset(self.models) if self.models else None,
            usd_per_bad_answer=self.usd_per_bad_answer,
            is_judged=judged if self.judge is None else self.judge,
        )


class RoutingConfig(_Config):
    """What the router weighs, unless an alias says otherwise.

    Attributes:
        usd_per_second: what a second of waiting is worth; 0: only money counts.
        usd_per_bad_answer: cost of a useless answer; 0: quality is not weighed.
        max_usd_per_bad_answer: the highest that a client may name in
            ``x-moyin-usd-per-bad-answer``; None: any.
        rescue: when a better model is asked after an answer that fails what can be checked:
            ``off``, ``checked`` (always), ``schema`` (where a schema, JSON or tools are asked for).
            Of a stream its beginning is checked.
        hold_streams: check streams as a whole where JSON, a schema or tools are asked for: the
            client gets them when they are complete, or longer than 256 KiB.
        explore: share of requests on which a model that little is known of may be tried. Worth it
            where answers are rated or judged; 0.05 is what the simulated month uses.
        share_levels: a tenant without signals of its own begins with what others found out: one
            number per model and kind, the median over at least five tenants.
        embedder: learns from what prompts mean beside their words, which takes 30 to 600 microseconds
            a prompt; ``wordllama``, of the extra ``embedder``. None: from words alone.
        timeout_s: a whole call may take so long, fallbacks included.
        hedge: None: nobody is asked twice.
        judge: None: no answers are compared.
    """

    usd_per_second: float = Field(0.00002, ge=0)
    usd_per_bad_answer: float = Field(DEFAULT_BAD_ANSWER, ge=0, allow_inf_nan=False)
    max_usd_per_bad_answer: float | None = Field(None, gt=0, allow_inf_nan=False)
    rescue: RescueSetting = Rescue.CHECKED
    hold_streams: bool = False
    explore: float = Field(0.0, ge=0, le=0.5)
    share_levels: bool = True
    embedder: Literal["wordllama"] | None = None
    timeout_s: float = Field(600, gt=0)
    hedge: HedgeConfig | None = None
    judge: JudgeConfig | None = None

    @field_validator("embedder")
    @classmethod
    def _installed(cls, name: str | None) -> str | None:
        if name is not None:
            package_folder(name)
        return name


class ImagesConfig(_Config):
    """``POST /v1/images/generations``.

    Attributes:
        timeout_s: a request waits so long for its pictures; the job goes on.
        link_seconds: for which URLs of pictures are good.
    """

    timeout_s: float = Field(120, gt=0, le=3_600)
    link_seconds: float = Field(3_600, gt=0, le=604_800)


def hedging_of(config: HedgeConfig | None) -> Hedging | None:
    return None if config is None else Hedging(share=config.share)


def policies_of(tenants: Mapping[str, TenantConfig]) -> dict[str, Policy]:
    """Return the policies of all tenants, and that of the judge, whose calls are bound by those of the
    tenant whose answers it compares."""
    everybody = tenants.get(ANY_TENANT)
    judged = everybody is None or everybody.judge is not False
    policies = {owner: tenant.policy(judged=judged) for owner, tenant in tenants.items()}
    return {**policies, JUDGE_OWNER: UNRESTRICTED}
