"""Builds the app ``gateway``."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation, and hands a
# plain dict to one that it finds to be a string.

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from deployments.gateway.config import GatewayConfig
from deployments.gateway.deployment import Gateway
from deployments.replicas import REPLICA

__all__ = ["GatewayArgs", "build"]


class GatewayArgs(BaseModel):
    """The ``args`` of the gateway in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: list[str] = Field(
        ["default"], min_length=1, description="Render pools that jobs may name."
    )


# Followers of events hold a request each for as long as they watch.
_deployment = serve.deployment(
    name="Gateway",
    max_ongoing_requests=2_000,
    user_config=GatewayConfig().model_dump(mode="json", by_alias=True),
    graceful_shutdown_timeout_s=10,
    **REPLICA,
)(serve.ingress()(Gateway))


def build(args: GatewayArgs) -> serve.Application:
    return _deployment.bind(tuple(args.pools))
