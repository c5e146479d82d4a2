"""Builds the Serve app ``intake``."""

# No `from __future__ import annotations` here: Ray Serve passes a plain dict if the annotation of
# `build` is a string.

from ray import serve

from actors.placement import NON_RENDER_NODES
from deployments.intake.config import IntakeArgs
from deployments.replicas import new_deployment

__all__ = ["IntakeArgs", "build"]

_deployment = new_deployment(
    "deployments.intake.deployment.Intake",
    name="Intake",
    graceful_shutdown_timeout_s=10,
    ray_actor_options={"label_selector": NON_RENDER_NODES},
)


def build(args: IntakeArgs) -> serve.Application:
    """Return the Serve application of the intake."""
    return _deployment.bind(args.model_dump())
