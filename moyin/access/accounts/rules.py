"""Defines the operator's settings of sign-in: its rules, and the OpenID providers.

They have a module of their own, because processes that only read the configuration of the accounts
app must not import its services.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moyin.domain.identity import PLAYER
from moyin.domain.limits import Limit


@dataclass(frozen=True, kw_only=True, slots=True)
class SignInPolicy:
    """Holds the rules of registration and sign-in, which the operator may change at run time.

    Attributes:
        allows_registration: True if people may register as players without an invitation.
        registrations_per_hour: the maximum number of new players per hour.
        player_limits: the limits of each new player; its ``subject`` is ignored.
        reset_url: the URL of the page that sets a password; ``{token}`` is replaced by the token.
        trusted_issuers: the OpenID providers whose users may sign in to an existing account by
            their verified email.
    """

    allows_registration: bool = True
    registrations_per_hour: int = 600
    player_scopes: frozenset[str] = frozenset({PLAYER})
    player_limits: Limit | None = None
    reset_url: str = ""
    trusted_issuers: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenIdProvider:
    """Describes an OpenID provider that the operator has configured.

    Attributes:
        issuer: the provider's URL, from which its endpoints are discovered.
        redirect_uris: the URIs that the provider may redirect browsers to.
        registers: True if a person without an account who signs in through the provider becomes a
            player.
        links_emails: True if people whose email the provider has verified may sign in to the
            existing account with that email.
    """

    name: str
    issuer: str
    client_id: str
    redirect_uris: tuple[str, ...]
    client_secret: str = field(default="", repr=False)
    scopes: str = "openid email profile"
    registers: bool = True
    links_emails: bool = False
