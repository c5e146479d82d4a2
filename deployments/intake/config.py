"""Defines the ``args`` of the app ``intake``: the message queues that it takes jobs from."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation.

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from deployments.replicas import StrictModel
from moyin.domain.identity import JOBS_READ, JOBS_WRITE, TEXT, is_internal_owner

__all__ = ["IntakeArgs", "RabbitConfig", "SourceConfig", "StreamConfig"]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
_Scope = Annotated[str, Field(pattern=r"^[a-z][a-z0-9:._-]{0,63}$")]


class _Source(StrictModel):
    """A message queue with jobs.

    Attributes:
        url_env: the environment variable with the broker's URL, which contains a password.
        owner: the tenant of every job; everyone who can write to the queue acts with its rights.
        scopes: the scopes of the jobs.
        best_priority: the best priority that messages may use; the tenant's limit applies, too.
        concurrency: most unsettled messages in one replica.
        name: distinguishes message ids from those of other sources; None: the queue's name. If it
            changes, unsettled messages become jobs a second time.
    """

    url_env: str = Field(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")
    owner: str = Field(min_length=1, max_length=128)
    scopes: frozenset[_Scope] = frozenset({TEXT, JOBS_READ, JOBS_WRITE})
    best_priority: int = Field(2, ge=1, le=5)
    concurrency: int = Field(100, ge=1, le=2_000)
    max_deliveries: int = Field(20, ge=1, le=1_000)
    name: _Name | None = None

    @field_validator("owner")
    @classmethod
    def _tenant(cls, owner: str) -> str:
        if is_internal_owner(owner):
            raise ValueError("must not begin with 'moyin:', which is reserved for Moyin")
        return owner


class RabbitConfig(_Source):
    """A RabbitMQ queue; ``declare: false`` if an operator has made the queues."""

    type: Literal["rabbitmq"]
    queue: _Name = "moyin.jobs"
    results: _Name = "moyin.results"
    dead_letters: _Name = "moyin.dead"
    declare: bool = True

    @property
    def source_name(self) -> str:
        """The name of the source."""
        return self.name or f"rabbitmq-{self.queue}"


class StreamConfig(_Source):
    """A Redis or Valkey stream.

    Attributes:
        claim_after: seconds of a worker's silence after which another takes over its entries.
        kept: the approximate number of results, and of dead letters, to keep.
    """

    type: Literal["redis"]
    stream: _Name = "moyin:jobs"
    results: _Name = "moyin:results"
    dead_letters: _Name = "moyin:dead"
    group: _Name = "moyin"
    claim_after: float = Field(30, ge=0.5, le=3_600)
    kept: int = Field(100_000, ge=1)

    @property
    def source_name(self) -> str:
        """The name of the source."""
        return self.name or f"redis-{self.stream}"


SourceConfig = Annotated[RabbitConfig | StreamConfig, Field(discriminator="type")]


class IntakeArgs(StrictModel):
    """The ``args`` of the intake in serve_config.yaml."""

    sources: list[SourceConfig] = Field(min_length=1, max_length=32)
    pools: list[str] = Field(
        ["default"], min_length=1, description="Render pools that jobs may name."
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Check that names are unique, so that messages of two sources are never confused."""
        counts = Counter((source.owner, source.source_name) for source in self.sources)
        for (owner, name), count in counts.items():
            if count > 1:
                raise ValueError(
                    f"{count} sources of {owner!r} have the name {name!r}: give each a unique name"
                )
        return self
