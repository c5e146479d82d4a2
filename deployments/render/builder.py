"""Builds the Serve application ``render-<pool>``."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation, and would pass a
# plain dict if it were a string.

from ray import serve

from actors.placement import NOT_FOR_RENDERS
from deployments.render.config import RenderArgs
from deployments.render.deployment import RenderPool
from deployments.replicas import REPLICA_OPTIONS

__all__ = ["build"]

# Time to stop ComfyUI and remove actors, after the drain timeout of the renders in progress.
_REMOVAL_SECONDS = 20.0


def build(args: RenderArgs) -> serve.Application:
    """Return the application of one pool."""
    deployment = serve.deployment(
        name="RenderPool",
        num_replicas=1,
        graceful_shutdown_timeout_s=args.drain_timeout + _REMOVAL_SECONDS,
        ray_actor_options={"num_cpus": 0.1, "label_selector": NOT_FOR_RENDERS},
        **REPLICA_OPTIONS,
    )(RenderPool)
    return deployment.bind(args)
