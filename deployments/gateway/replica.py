"""Defines the class that a replica of the app ``gateway`` runs."""

from __future__ import annotations

from ray import serve

from deployments.gateway.deployment import Gateway

GatewayReplica = serve.ingress()(Gateway)
