"""Defines the class that a replica of the app ``accounts`` runs."""

from __future__ import annotations

from ray import serve

from deployments.accounts.deployment import Accounts

AccountsReplica = serve.ingress()(Accounts)
