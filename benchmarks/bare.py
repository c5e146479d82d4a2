"""Deploys a minimal forwarder with Ray Serve, to measure the overhead of Serve without Moyin."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation.

from pydantic import BaseModel, ConfigDict
from ray import serve

from benchmarks.forwarder import Forwarder
from deployments.replicas import REPLICA_OPTIONS


class BareArgs(BaseModel):
    """The ``args`` of the app in the Serve configuration: the URL of the server to forward to."""

    model_config = ConfigDict(extra="forbid")

    upstream: str


class BareForwarder:
    """Serves the forwarder in a replica with the same options as the models app."""

    def __init__(self, upstream: str) -> None:
        self._forwarder = Forwarder(upstream)

    def __serve_build_asgi_app__(self) -> Forwarder:
        return self._forwarder


def build(args: BareArgs) -> serve.Application:
    """Return the Serve app that runs the forwarder, for the configuration's ``import_path``."""
    deployment = serve.deployment(name="Bare", max_ongoing_requests=1_000, **REPLICA_OPTIONS)(
        serve.ingress()(BareForwarder)
    )
    return deployment.bind(args.upstream)
