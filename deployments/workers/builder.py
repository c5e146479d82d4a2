"""Builds the Serve app ``workers``."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation, and passes a plain
# dict if the annotation is a string.

from pydantic import Field
from ray import serve

from deployments.replicas import REPLICA_OPTIONS, StrictModel
from deployments.workers.deployment import JobWorker

__all__ = ["WorkersArgs", "build"]


class WorkersArgs(StrictModel):
    """The ``args`` of the workers in serve_config.yaml."""

    concurrency: int = Field(
        50, ge=1, description="Most steps that one replica runs at a time, and most webhooks."
    )


_deployment = serve.deployment(
    name="JobWorker",
    # Longer than the worker's own grace for running steps.
    graceful_shutdown_timeout_s=20,
    **REPLICA_OPTIONS,
)(JobWorker)


def build(args: WorkersArgs) -> serve.Application:
    """Bind the deployment."""
    return _deployment.bind(args.concurrency)
