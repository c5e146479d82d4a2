"""Builds the Serve application ``gateway``."""

# No `from __future__ import annotations` here: Ray reads the annotation of `build`, and would pass
# a plain dict if the annotation were a string.

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from deployments.gateway.config import GatewayConfig
from deployments.gateway.deployment import Gateway
from deployments.replicas import REPLICA_OPTIONS

__all__ = ["GatewayArgs", "build"]


class GatewayArgs(BaseModel):
    """Validates the gateway's ``args`` in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: list[str] = Field(
        ["default"], min_length=1, description="Render pools that jobs may name."
    )


# Every client that follows events occupies a request for as long as it is connected.
_deployment = serve.deployment(
    name="Gateway",
    max_ongoing_requests=2_000,
    user_config=GatewayConfig().model_dump(mode="json", by_alias=True),
    graceful_shutdown_timeout_s=10,
    **REPLICA_OPTIONS,
)(serve.ingress()(Gateway))


def build(args: GatewayArgs) -> serve.Application:
    """Return the application that Serve deploys."""
    return _deployment.bind(tuple(args.pools))
