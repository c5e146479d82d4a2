"""Builds the app ``models``."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation at run time. If
# the annotation is a string, Ray passes a plain dict instead of the model.

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from deployments.models.config import ModelsConfig
from deployments.models.deployment import Models
from deployments.replicas import REPLICA_OPTIONS

__all__ = ["ModelsArgs", "build"]


class ModelsArgs(BaseModel):
    """Holds the ``args`` of the models app; its back ends are in ``user_config``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_ongoing_requests: int = Field(
        1_000, ge=1, description="Requests that one replica handles at a time."
    )


def build(args: ModelsArgs) -> serve.Application:
    """Bind the app's only deployment."""
    deployment = serve.deployment(
        name="Models",
        max_ongoing_requests=args.max_ongoing_requests,
        user_config=ModelsConfig().model_dump(mode="json", by_alias=True),
        graceful_shutdown_timeout_s=10,
        **REPLICA_OPTIONS,
    )(serve.ingress()(Models))
    return deployment.bind()
