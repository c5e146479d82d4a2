"""Builds the Serve app ``workers``."""

# No `from __future__ import annotations` here: Ray Serve passes a plain dict if the annotation of
# `build` is a string.

from pydantic import Field
from ray import serve

from deployments.replicas import StrictModel, new_deployment


class WorkersArgs(StrictModel):
    """The ``args`` of the app ``workers`` in serve_config.yaml."""

    concurrency: int = Field(
        50, ge=1, description="Most steps that one replica runs at a time, and most webhooks."
    )


_deployment = new_deployment(
    "deployments.workers.deployment.JobWorker",
    name="JobWorker",
    # Longer than the worker's own grace period for running steps.
    graceful_shutdown_timeout_s=20,
)


def build(args: WorkersArgs) -> serve.Application:
    """Return the Serve application of the job workers."""
    return _deployment.bind(args.concurrency)
