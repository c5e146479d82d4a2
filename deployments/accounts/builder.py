"""Builds the Ray Serve application ``accounts``."""

# No `from __future__ import annotations` here: Ray Serve passes a plain dict if the annotation of
# `build` is a string.

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from deployments.accounts.config import AccountsConfig
from deployments.replicas import new_deployment


class AccountsArgs(BaseModel):
    """Validates the ``args`` of the accounts app in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access_token_minutes: int = Field(
        10, ge=1, le=60, description="Lifetime of an access token, in minutes."
    )
    session_days: int = Field(
        30, ge=1, le=365, description="Days after which a session without a refresh ends."
    )


def build(args: AccountsArgs) -> serve.Application:
    """Return the accounts app for Ray Serve to deploy."""
    deployment = new_deployment(
        "deployments.accounts.replica.AccountsReplica",
        name="Accounts",
        max_ongoing_requests=500,
        user_config=AccountsConfig().model_dump(mode="json"),
        graceful_shutdown_timeout_s=10,
    )
    return deployment.bind(
        timedelta(minutes=args.access_token_minutes), timedelta(days=args.session_days)
    )
