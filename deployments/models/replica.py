"""Defines the class that a replica of the app ``models`` runs."""

from __future__ import annotations

from ray import serve

from deployments.models.deployment import Models

ModelsReplica = serve.ingress()(Models)
