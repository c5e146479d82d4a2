"""The ``user_config`` of the accounts app: what may change while it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from moyin.access.accounts.oidc import Provider
from moyin.access.accounts.signin import Policy
from moyin.access.protocol.response import to_limit
from moyin.access.protocol.wire import LimitBody, ScopeName
from moyin.domain.identity import PLAYER

__all__ = ["AccountsConfig", "ProviderConfig"]

_Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2048)]


class ProviderConfig(BaseModel):
    """An OpenID provider."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,31}$", description="As it stands in paths.")
    issuer: _Url
    client_id: str = Field(min_length=1)
    client_secret_env: str | None = Field(
        None, description="Environment variable with the secret; null: a public client."
    )
    redirect_uris: list[str] = Field(min_length=1)
    scopes: str = "openid email profile"
    registers: bool = Field(True, description="Whom it vouches for and nobody knows is a player.")
    links_emails: bool = Field(
        False, description="A verified email of its leads to the account with that email."
    )

    def provider(self, environment: Mapping[str, str]) -> Provider:
        """
        Raises:
            ValueError: the secret's variable is not set.
        """
        secret = ""
        if self.client_secret_env is not None:
            secret = environment.get(self.client_secret_env, "")
            if not secret:
                raise ValueError(f"{self.client_secret_env} is not set (provider {self.name})")
        return Provider(
            name=self.name,
            issuer=self.issuer,
            client_id=self.client_id,
            client_secret=secret,
            redirect_uris=tuple(self.redirect_uris),
            scopes=self.scopes,
            registers=self.registers,
            links_emails=self.links_emails,
        )


class AccountsConfig(BaseModel):
    """Who may come in, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    registration: bool = Field(True, description="Strangers may make themselves players.")
    registrations_per_hour: int = Field(
        600, ge=0, le=1_000_000, description="New players in an hour, wherever they come from."
    )
    player_scopes: list[ScopeName] = Field(
        [PLAYER], description="What players may do; `text` would let them ask models."
    )
    player_limits: LimitBody | None = Field(
        None, description="Limits and budgets that every new player gets."
    )
    reset_url: str = Field(
        "", description="Page that takes the token of a mail; `{token}` stands for it."
    )
    providers: list[ProviderConfig] = []

    @model_validator(mode="after")
    def _distinct(self) -> AccountsConfig:
        if len({provider.name for provider in self.providers}) < len(self.providers):
            raise ValueError("two providers have the same name")
        return self

    @property
    def policy(self) -> Policy:
        return Policy(
            registration=self.registration,
            registrations_per_hour=self.registrations_per_hour,
            player_scopes=frozenset(self.player_scopes),
            player_limits=None if self.player_limits is None else to_limit("", self.player_limits),
            reset_url=self.reset_url,
            trusted_issuers=frozenset(one.issuer for one in self.providers if one.links_emails),
        )

    def open_id(self, environment: Mapping[str, str] = os.environ) -> Mapping[str, Provider]:
        """The providers by name.

        Raises:
            ValueError: a secret's variable is not set.
        """
        found = [provider.provider(environment) for provider in self.providers]
        return {provider.name: provider for provider in found}
