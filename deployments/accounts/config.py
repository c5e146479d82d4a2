"""Defines the accounts app's ``user_config``, which Ray Serve reloads without a restart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from moyin.access.accounts.rules import OpenIdProvider, SignInPolicy
from moyin.access.protocol.request_to_domain import parse_limit
from moyin.access.protocol.wire import LimitBody, ScopeName
from moyin.domain.identity import PLAYER

_Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2048)]


class ProviderConfig(BaseModel):
    """Configures one OpenID provider through which people sign in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,31}$",
        description="Name of the provider in requests and responses.",
    )
    issuer: _Url
    client_id: str = Field(min_length=1)
    client_secret_env: str | None = Field(
        None,
        description="Environment variable that holds the client secret; null for a public client.",
    )
    redirect_uris: list[str] = Field(min_length=1)
    scopes: str = "openid email profile"
    registers: bool = Field(
        True, description="Register unknown people who sign in through it as players."
    )
    links_emails: bool = Field(
        False, description="Sign in to the account with the email that the provider has verified."
    )

    def to_provider(self, environment: Mapping[str, str]) -> OpenIdProvider:
        """Return the provider with its client secret from the environment.

        Raises:
            ValueError: the environment variable in ``client_secret_env`` is not set.
        """
        secret = ""
        if self.client_secret_env is not None:
            secret = environment.get(self.client_secret_env, "")
            if not secret:
                raise ValueError(
                    f"providers.{self.name}.client_secret_env: the environment variable "
                    f"{self.client_secret_env} must be set to the provider's client secret"
                )
        return OpenIdProvider(
            name=self.name, issuer=self.issuer, client_id=self.client_id, client_secret=secret,
            redirect_uris=tuple(self.redirect_uris), scopes=self.scopes, registers=self.registers,
            links_emails=self.links_emails,
        )  # fmt: skip


class AccountsConfig(BaseModel):
    """Configures registration, the rights of players, and OpenID providers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    registration: bool = Field(True, description="Let anybody register as a player.")
    registrations_per_hour: int = Field(
        600, ge=0, le=1_000_000, description="Maximum number of new players per hour in total."
    )
    player_scopes: list[ScopeName] = Field(
        [PLAYER], description="Scopes of players; with `text` they may call models."
    )
    player_limits: LimitBody | None = Field(
        None, description="Limits and budgets of each new player."
    )
    reset_url: str = Field(
        "", description="URL of the page that sets a password; `{token}` is replaced by the token."
    )
    providers: list[ProviderConfig] = []

    @model_validator(mode="after")
    def _require_distinct_names(self) -> AccountsConfig:
        if len({provider.name for provider in self.providers}) < len(self.providers):
            raise ValueError("providers: two providers have the same name; names must be unique")
        return self

    @property
    def sign_in_policy(self) -> SignInPolicy:
        """The rules for registration and sign-in that `SignInService` enforces."""
        return SignInPolicy(
            allows_registration=self.registration,
            registrations_per_hour=self.registrations_per_hour,
            player_scopes=frozenset(self.player_scopes),
            player_limits=None
            if self.player_limits is None
            else parse_limit("", self.player_limits),
            reset_url=self.reset_url,
            trusted_issuers=frozenset(p.issuer for p in self.providers if p.links_emails),
        )

    def build_providers_by_name(
        self, environment: Mapping[str, str] = os.environ
    ) -> Mapping[str, OpenIdProvider]:
        """Return the OpenID providers by name, with their client secrets from the environment.

        Raises:
            ValueError: the environment variable of a client secret is not set.
        """
        return {config.name: config.to_provider(environment) for config in self.providers}
