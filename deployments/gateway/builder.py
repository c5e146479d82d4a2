"""Builds the Ray Serve application ``gateway``."""

# No `from __future__ import annotations` here: Ray Serve passes a plain dict if the annotation of
# `build` is a string.

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from deployments.gateway.config import GatewayConfig
from deployments.replicas import new_deployment


class GatewayArgs(BaseModel):
    """Validates the ``args`` of the gateway app in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: list[str] = Field(
        ["default"], min_length=1, description="Render pools that jobs may name."
    )


# Each client that follows events occupies one request while it is connected.
_deployment = new_deployment(
    "deployments.gateway.replica.GatewayReplica",
    name="Gateway",
    max_ongoing_requests=2_000,
    user_config=GatewayConfig().model_dump(mode="json", by_alias=True),
    graceful_shutdown_timeout_s=10,
)


def build(args: GatewayArgs) -> serve.Application:
    """Return the gateway app for Ray Serve to deploy."""
    return _deployment.bind(tuple(args.pools))
