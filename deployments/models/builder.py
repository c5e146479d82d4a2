"""Builds the Serve app ``models``."""

# No `from __future__ import annotations` here: Ray Serve passes a plain dict if the annotation of
# `build` is a string.

from pydantic import Field
from ray import serve

from deployments.models.config import ModelsConfig
from deployments.replicas import StrictModel, new_deployment


class ModelsArgs(StrictModel):
    """The ``args`` of the app ``models``, whose back ends are in its ``user_config``."""

    max_ongoing_requests: int = Field(
        1_000, ge=1, description="Requests that one replica handles at a time."
    )


def build(args: ModelsArgs) -> serve.Application:
    """Return the Serve application of the models app."""
    deployment = new_deployment(
        "deployments.models.replica.ModelsReplica",
        name="Models",
        max_ongoing_requests=args.max_ongoing_requests,
        user_config=ModelsConfig().model_dump(mode="json", by_alias=True),
        graceful_shutdown_timeout_s=10,
    )
    return deployment.bind()
