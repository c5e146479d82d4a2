"""Defines the request and response bodies of the accounts API as pydantic models."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from moyin.domain.account import Role, UserKind
from moyin.http.validation import UtcDatetime

_MAX_PROFILE_BYTES = 16 * 1024
_MAX_SCOPES_BYTES = 1024


def _require_printable(text: str) -> str:
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("must not contain control characters")
    return text


def _require_unicode(text: str) -> str:
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("must be valid Unicode, without lone surrogates")
    return text


def _require_short_scopes(scopes: list[str]) -> list[str]:
    if len(" ".join(scopes)) > _MAX_SCOPES_BYTES:
        raise ValueError(f"all scopes together must not exceed {_MAX_SCOPES_BYTES} bytes")
    return scopes


def _require_small_profile(profile: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(profile, allow_nan=False, ensure_ascii=False).encode())
    except ValueError:
        raise ValueError("must be JSON in valid Unicode, without NaN and infinities") from None
    # PostgreSQL cannot store NUL characters.
    if size > _MAX_PROFILE_BYTES or "\\u0000" in json.dumps(profile):
        raise ValueError(
            f"must not exceed {_MAX_PROFILE_BYTES} bytes as JSON, and must not contain NUL"
        )
    return profile


Email = Annotated[
    str,
    StringConstraints(max_length=254, pattern=r"^[!-?A-~]{1,64}@[A-Za-z0-9.-]+\.[A-Za-z0-9-]+$"),
]
# An email that a caller claims to have, which need not be valid.
ClaimedEmail = Annotated[str, StringConstraints(max_length=254), AfterValidator(_require_printable)]
# NIST SP 800-63B demands a minimum length and no character classes.
Password = Annotated[
    str, StringConstraints(min_length=10, max_length=256), AfterValidator(_require_unicode)
]
Secret = Annotated[
    str, StringConstraints(min_length=1, max_length=2048), AfterValidator(_require_unicode)
]
Name = Annotated[str, StringConstraints(max_length=128), AfterValidator(_require_printable)]
RequiredName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, strip_whitespace=True),
    AfterValidator(_require_printable),
]
Profile = Annotated[dict[str, Any], AfterValidator(_require_small_profile)]
ScopeName = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9:._-]{0,63})$")]
# Encoded in JSON as a string without an exponent, so that the value stays exact.
Money = Annotated[
    Decimal,
    Field(ge=0, le=9_000_000, decimal_places=9),
    PlainSerializer(lambda usd: format(usd.normalize(), "f"), return_type=str, when_used="json"),
]
Count = Annotated[int, Field(ge=0, le=2_000_000_000)]
Names = Annotated[
    tuple[
        Annotated[
            str, StringConstraints(min_length=1, max_length=128), AfterValidator(_require_printable)
        ],
        ...,
    ],
    Field(max_length=256),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class Register(_Request):
    email: Email
    password: Password
    name: Name = ""


class Login(_Request):
    email: ClaimedEmail
    password: Secret
    device_token: Annotated[str, StringConstraints(max_length=2048)] | None = Field(
        None,
        description="Token of an earlier sign-in on this device, so that attempts of others at the "
        "account do not delay this one.",
    )


class SignInBrowser(_Request):
    """The credentials of a sign-in: a password, an API key, or a new session's refresh token."""

    email: ClaimedEmail | None = None
    password: Secret | None = None
    api_key: Secret | None = None
    refresh_token: Secret | None = Field(
        None, description="As `POST /oidc/finish` returns it; becomes invalid."
    )

    @model_validator(mode="after")
    def _require_one_way(self) -> SignInBrowser:
        given_names = self.model_fields_set & {"email", "password", "api_key", "refresh_token"}
        allowed_combinations = ({"email", "password"}, {"api_key"}, {"refresh_token"})
        if given_names not in allowed_combinations or any(
            getattr(self, name) is None for name in given_names
        ):
            raise ValueError("must have email and password, or api_key, or refresh_token")
        return self


class RefreshSession(_Request):
    refresh_token: Secret


class Logout(_Request):
    everywhere: bool = Field(False, description="End all of your sessions, not only this one.")


class ForgotPassword(_Request):
    email: ClaimedEmail


class ResetPassword(_Request):
    token: Secret
    password: Password


class ChangePassword(_Request):
    current_password: Annotated[
        str, StringConstraints(max_length=256), AfterValidator(_require_unicode)
    ] = Field("", description="May be left out if you have no password yet.")
    new_password: Password


class ChangeProfile(_Request):
    name: Name | None = None
    profile: Profile | None = Field(None, description="Replaces the whole profile.")


class BeginSignIn(_Request):
    provider: Annotated[str, StringConstraints(max_length=32)]
    redirect_uri: Annotated[str, StringConstraints(max_length=2048)]


class FinishSignIn(_Request):
    state: Secret
    code: Secret


class NewOrganisation(_Request):
    name: RequiredName


class NewMember(_Request):
    email: Email
    name: Name = ""
    role: Role = Role.MEMBER


class NewServiceAccount(_Request):
    name: RequiredName
    role: Role = Role.MEMBER


class ChangeMember(_Request):
    role: Role | None = None
    disabled: bool | None = None


class ChangeUser(_Request):
    disabled: bool


class NewKey(_Request):
    name: Name = ""
    scopes: Annotated[list[ScopeName], AfterValidator(_require_short_scopes)] | None = Field(
        None,
        max_length=32,
        description="Scopes of the key; left out: those of `text`, `jobs:read` and `jobs:write` "
        "that its user has.",
    )
    expires_at: UtcDatetime | None = None
    user: (
        Annotated[str, StringConstraints(max_length=36), AfterValidator(_require_printable)] | None
    ) = Field(None, description="Id of a service account; left out: yourself.")


class RotateKey(_Request):
    overlap_seconds: int = Field(
        0, ge=0, le=7 * 24 * 3600, description="Seconds for which the old secret stays valid."
    )


class LimitBody(BaseModel):
    """The limits and budgets of a subject; omitted members are unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    open_jobs: Count | None = None
    best_priority: Annotated[int, Field(ge=1, le=5)] | None = Field(
        None, description="Best priority class that jobs may have, from 1 (first) to 5."
    )
    graph_nodes: Count | None = Field(
        None,
        description="Most nodes of a graph. A tenant's replaces the default; a key's or user's can only lower it.",
    )
    graph_links: Count | None = Field(None, description="Most links of a graph, in the same way.")
    graph_bytes: Count | None = Field(
        None, description="Largest graph, in bytes of its JSON, in the same way."
    )
    usd_per_day: Money | None = None
    usd_per_month: Money | None = None
    pools: Names | None = Field(None, description="Render pools that may be used.")
    allowed_nodes: Names | None = Field(
        None, description="Patterns of ComfyUI node classes that graphs may contain."
    )
    denied_nodes: Names | None = Field(
        None,
        description="Patterns of ComfyUI node classes that graphs may not contain; wins over `allowed_nodes`.",
    )


class SubjectLimit(LimitBody):
    subject: str


class UserBody(_Response):
    id: str
    kind: UserKind
    email: str | None
    name: str
    organisation: str | None
    role: Role | None
    profile: dict[str, Any]
    disabled: bool
    created_at: datetime


class InvitedMember(UserBody):
    invitation: str | None = Field(
        description="Token for `POST /password/reset`, to pass to the member; null if it was mailed."
    )


class SessionBody(_Response):
    """The members of an RFC 6749 token response, plus the device token and the user."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int = Field(description="Seconds.")
    refresh_token: str
    device_token: str | None = Field(
        description="Token of this device for `POST /login`; keep it after signing out. It grants no "
        "access. Null after a refresh."
    )
    user: UserBody


class PasswordResetResult(_Response):
    device_token: str = Field(
        description="Token of this device for `POST /login` with the new password."
    )


class WhoAmI(_Response):
    """The identity of the API key or access token that the caller sent."""

    owner: str
    key_id: str
    user: str | None
    scopes: list[str]


class BrowserSession(WhoAmI):
    """The identity of a signed-in browser, whose key or token is in a cookie."""

    expires_in: int = Field(description="Seconds until the browser's cookie expires.")
    renewable: bool = Field(
        description="Whether `POST /session/renew` gives a new cookie. An API key's cookie is not "
        "renewed: the browser signs in again."
    )


class OpenSession(_Response):
    id: str
    created_at: datetime
    last_used_at: datetime = Field(description="The last sign-in or renewal.")
    expires_at: datetime
    address: str = Field(description="Where the session was last used; empty if unknown.")
    user_agent: str = Field(description="The browser or program, as it calls itself.")
    current: bool = Field(description="Whether this request belongs to the session.")


class SessionList(_Response):
    sessions: list[OpenSession]


class ProviderBody(_Response):
    name: str
    issuer: str
    redirect_uris: list[str] = Field(description="Where the provider may send people back to.")


class ProviderList(_Response):
    providers: list[ProviderBody]


class SignInWays(ProviderList):
    """The ways in which people can sign in to this installation."""

    registration: bool = Field(description="Whether anybody can register as a player.")
    password_reset: bool = Field(
        description="Whether tokens that reset passwords are mailed; otherwise an administrator of "
        "the organisation creates one."
    )


class StartedSignIn(_Response):
    authorization_url: str
    state: str


class OrganisationBody(_Response):
    id: str
    name: str
    created_at: datetime


class OrganisationList(_Response):
    organisations: list[OrganisationBody]
    next_cursor: str | None = None


class UserList(_Response):
    users: list[UserBody]


class MemberList(_Response):
    members: list[UserBody]
    next_cursor: str | None = None


class KeyBody(_Response):
    id: str
    owner: str
    user: str | None
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="Accurate to a minute.")


class CreatedKey(KeyBody):
    key: str = Field(description="Shown only once, since it is not stored.")


class RotatedKey(_Response):
    id: str
    key: str = Field(description="Shown only once, since it is not stored.")


class KeyList(_Response):
    keys: list[KeyBody]
    next_cursor: str | None = None


class SigningKeyBody(_Response):
    kid: str


class LimitList(_Response):
    limits: list[SubjectLimit]


class SubjectBudget(_Response):
    """The remaining amount of a budget in its current period."""

    limit: str = Field(description="`usd_per_day` or `usd_per_month`.", examples=["usd_per_day"])
    limit_usd: str
    spent_usd: str
    reserved_usd: str = Field(
        description="The most that running calls and the jobs that have not ended may cost."
    )
    left_usd: str
    resets_at: datetime


class SubjectBudgetList(_Response):
    budgets: list[SubjectBudget]


class AuditEntry(_Response):
    id: str
    at: datetime
    owner: str
    actor: str
    action: str
    target: str
    details: dict[str, Any]
    request_id: str
    address: str


class AuditPage(_Response):
    entries: list[AuditEntry]
