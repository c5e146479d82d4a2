"""Builds the app ``render-<pool>``."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation, and hands a
# plain dict to one that it finds to be a string.

from ray import serve

from actors.placement import NOT_FOR_RENDERS
from deployments.render.config import RenderArgs
from deployments.render.deployment import RenderPool
from deployments.replicas import REPLICA

__all__ = ["build"]

# For stopping ComfyUI and removing actors, after the renders at work have had theirs.
_REMOVAL_SECONDS = 20.0


def build(args: RenderArgs) -> serve.Application:
    deployment = serve.deployment(
        name="RenderPool",
        num_replicas=1,
        graceful_shutdown_timeout_s=args.drain_timeout + _REMOVAL_SECONDS,
        ray_actor_options={"num_cpus": 0.1, "label_selector": NOT_FOR_RENDERS},
        **REPLICA,
    )(RenderPool)
    return deployment.bind(args)
