"""Builds the Serve application ``render-<pool>``."""

# No `from __future__ import annotations` here: Ray Serve passes a plain dict if the annotation of
# `build` is a string.

from ray import serve

from actors.placement import NON_RENDER_NODES
from deployments.render.config import RenderArgs
from deployments.replicas import new_deployment

# Seconds for stopping ComfyUI and removing actors after the drain timeout of running renders.
_REMOVAL_TIMEOUT_SECONDS = 20.0


def build(args: RenderArgs) -> serve.Application:
    """Return the Serve application of a render pool."""
    deployment = new_deployment(
        "deployments.render.deployment.RenderPool",
        name="RenderPool",
        num_replicas=1,
        graceful_shutdown_timeout_s=args.drain_timeout + _REMOVAL_TIMEOUT_SECONDS,
        ray_actor_options={"num_cpus": 0.1, "label_selector": NON_RENDER_NODES},
    )
    return deployment.bind(args)
