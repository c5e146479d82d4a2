"""Builds the app ``accounts``."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation, and hands a
# plain dict to one that it finds to be a string.

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from deployments.accounts.config import AccountsConfig
from deployments.accounts.deployment import Accounts
from deployments.replicas import REPLICA

__all__ = ["AccountsArgs", "build"]


class AccountsArgs(BaseModel):
    """The ``args`` of the accounts app in serve_config.yaml; its rules are its ``user_config``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access_token_minutes: int = Field(
        10, ge=1, le=60, description="How long an access token proves who somebody is."
    )
    session_days: int = Field(
        30, ge=1, le=365, description="A session that is not refreshed for so long is over."
    )


def build(args: AccountsArgs) -> serve.Application:
    deployment = serve.deployment(
        name="Accounts",
        max_ongoing_requests=500,
        user_config=AccountsConfig().model_dump(mode="json"),
        graceful_shutdown_timeout_s=10,
        **REPLICA,
    )(serve.ingress()(Accounts))
    return deployment.bind(
        timedelta(minutes=args.access_token_minutes), timedelta(days=args.session_days)
    )
