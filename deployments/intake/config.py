"""Defines the ``args`` of the app ``intake``, which list message queues with jobs."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from deployments.replicas import StrictModel
from moyin.domain.identity import JOBS_READ, JOBS_WRITE, TEXT, is_internal_owner

_QueueName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
_ScopeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9:._-]{0,63}$")]


class _SourceSettings(StrictModel):
    """The settings of all kinds of message queues with jobs.

    Attributes:
        url_env: name of the environment variable with the broker's URL, which contains a password.
        owner: tenant of every job. Everyone who can write to the queue has the rights of this
            tenant.
        scopes: scopes of the jobs.
        best_priority: best priority that a message may set for its job, from 1 (first) to 5 (last);
            the tenant's own limit applies, too.
        concurrency: maximum number of messages that a replica processes at the same time.
        max_deliveries: number of failed deliveries after which a message becomes a dead letter.
        name: name of the source, unique for the tenant; if None, it is made from the queue's name.
            After a change of the name, messages that were being processed become jobs a second
            time.
    """

    url_env: str = Field(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")
    owner: str = Field(min_length=1, max_length=128)
    scopes: frozenset[_ScopeName] = frozenset({TEXT, JOBS_READ, JOBS_WRITE})
    best_priority: int = Field(2, ge=1, le=5)
    concurrency: int = Field(100, ge=1, le=2_000)
    max_deliveries: int = Field(20, ge=1, le=1_000)
    name: _QueueName | None = None

    @field_validator("owner")
    @classmethod
    def _check_owner(cls, owner: str) -> str:
        if is_internal_owner(owner):
            raise ValueError("must not begin with 'moyin:', which is reserved for Moyin")
        return owner


class RabbitConfig(_SourceSettings):
    """The settings of a RabbitMQ queue, which Moyin creates unless ``declare`` is false."""

    type: Literal["rabbitmq"]
    queue: _QueueName = "moyin.jobs"
    results: _QueueName = "moyin.results"
    dead_letters: _QueueName = "moyin.dead"
    declare: bool = True

    @property
    def source_name(self) -> str:
        """The name of the source; by default, ``rabbitmq-`` and the name of its queue."""
        return self.name or f"rabbitmq-{self.queue}"


class StreamConfig(_SourceSettings):
    """The settings of a Redis or Valkey stream.

    Attributes:
        claim_after: seconds for which a worker must be inactive before other workers claim its
            entries.
        kept: approximate maximum number of stored results, and of stored dead letters.
    """

    type: Literal["redis"]
    stream: _QueueName = "moyin:jobs"
    results: _QueueName = "moyin:results"
    dead_letters: _QueueName = "moyin:dead"
    group: _QueueName = "moyin"
    claim_after: float = Field(30, ge=0.5, le=3_600)
    kept: int = Field(100_000, ge=1)

    @property
    def source_name(self) -> str:
        """The name of the source; by default, ``redis-`` and the name of its stream."""
        return self.name or f"redis-{self.stream}"


SourceConfig = Annotated[RabbitConfig | StreamConfig, Field(discriminator="type")]


class IntakeArgs(StrictModel):
    """The ``args`` of the app ``intake`` in serve_config.yaml."""

    sources: list[SourceConfig] = Field(min_length=1, max_length=32)
    pools: list[str] = Field(
        ["default"], min_length=1, description="Render pools that jobs may name."
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Check that the sources of a tenant have different names.

        A job's idempotency key is the source's name with the message's id. If two sources had the
        same name, messages of both could have the same key, and one of them would be ignored.
        """
        counts = Counter((source.owner, source.source_name) for source in self.sources)
        for (owner, name), count in counts.items():
            if count > 1:
                raise ValueError(
                    f"sources: {count} sources of {owner!r} have the name {name!r}; set a unique 'name' for each"
                )
        return self
