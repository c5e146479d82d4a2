"""Builds the Serve app ``workers``."""

# Ray reads the builder's annotation, which `from __future__ import annotations` would make a string.

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
    # The worker itself stops waiting for running steps earlier.
    graceful_shutdown_timeout_s=20,
)


def build(args: WorkersArgs) -> serve.Application:
    """Return the Serve application of the job workers."""
    return _deployment.bind(args.concurrency)
