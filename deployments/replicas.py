"""Contains the deployment options and the configuration handling that all apps share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypedDict, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig

_log = logging.getLogger(__name__)
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class _DeploymentOptions(TypedDict):
    """Keyword arguments of ``serve.deployment``."""

    health_check_period_s: float
    health_check_timeout_s: float
    logging_config: LoggingConfig


# Serve notices a killed replica only by its health checks. With the default period of ten seconds,
# a service with one replica would be unavailable for up to ten seconds before another one starts.
# Serve replaces a replica after three health checks without a response. Serve's access log is off
# because it is slow and contains less than ours.
REPLICA_OPTIONS = _DeploymentOptions(
    health_check_period_s=2.0,
    health_check_timeout_s=10.0,
    logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
)


def new_deployment(import_path: str, **options: Any) -> serve.Deployment:
    """Create a deployment of a class that only the replicas import.

    Serve, and `moyin up` for validation, build each app in a process of its own. Importing the
    class there, too, would take a fifth of the processor time of a start.

    Args:
        import_path: the path of the class, as ``module.Class``.
        options: arguments of ``serve.deployment``.
    """
    deployment = serve.deployment(**options, **REPLICA_OPTIONS)(_ReplicaClassPlaceholder)
    # Serve accepts an import path in place of a class, but its annotation does not say so.
    return deployment.options(func_or_class=cast("Any", import_path))


class _ReplicaClassPlaceholder:
    """Stands in for a deployment's class until `new_deployment` sets the class's import path."""


class StrictModel(BaseModel):
    """Base class of configuration models, which are immutable and reject unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReloadableConfig(Generic[ConfigT]):
    """Validates and applies each ``user_config`` that Serve passes to a running replica.

    Serve stops a replica whose `reconfigure` raises, and then every replica that replaces it, so a
    typing error would stop the whole app. Therefore only the first configuration may raise. Later
    invalid configurations are logged and ignored.

    Args:
        apply: applies a valid configuration completely, or raises ValueError and changes nothing.

    Attributes:
        current: the configuration in force; None before the first one.
        applied_at: the time at which ``current`` was applied.
        is_rejected: True if the latest configuration was invalid and is ignored.
    """

    def __init__(self, model: type[ConfigT], apply: Callable[[ConfigT], None]) -> None:
        self._model = model
        self._apply = apply
        self.current: ConfigT | None = None
        self.applied_at: datetime | None = None
        self.is_rejected = False

    def load(self, user_config: dict[str, Any]) -> None:
        """Validate and apply a configuration; raise ValueError if the first one is invalid."""
        try:
            config = self._model.model_validate(user_config)
            self._apply(config)
        except ValueError as error:
            if self.current is None:
                raise
            self.is_rejected = True
            _log.error(
                "ignored an invalid user_config and kept the previous one: %s",
                _describe_invalid_fields(error),
            )
        else:
            self.current, self.applied_at = config, datetime.now(UTC)
            self.is_rejected = False


def _describe_invalid_fields(error: ValueError) -> str:
    """Return the paths and problems of invalid fields, without values, which may be secrets."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
