"""Shapes of the accounts API."""

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
)

from moyin.domain.account import Role, UserKind
from moyin.http.validation import UtcDatetime

_MAX_PROFILE_BYTES = 16 * 1024
_MAX_SCOPES_BYTES = 1024


def _printable(text: str) -> str:
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("must not hold control characters")
    return text


def _encodable(text: str) -> str:
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("must be valid Unicode")
    return text


def _storable(scopes: list[str]) -> list[str]:
    if len(" ".join(scopes)) > _MAX_SCOPES_BYTES:
        raise ValueError(f"must be at most {_MAX_SCOPES_BYTES} bytes together")
    return scopes


def _small(profile: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(profile, allow_nan=False, ensure_ascii=False).encode())
    except ValueError:
        raise ValueError("must be JSON in valid Unicode, without NaN and infinities") from None
    # PostgreSQL stores no NUL.
    if size > _MAX_PROFILE_BYTES or "\\u0000" in json.dumps(profile):
        raise ValueError(f"must be at most {_MAX_PROFILE_BYTES} bytes of JSON, without NUL")
    return profile


Email = Annotated[
    str,
    StringConstraints(max_length=254, pattern=r"^[!-?A-~]{1,64}@[A-Za-z0-9.-]+\.[A-Za-z0-9-]+$"),
]
# Whatever somebody takes for an email.
Claimed = Annotated[str, StringConstraints(max_length=254), AfterValidator(_printable)]
# NIST SP 800-63B: length is what counts.
Password = Annotated[
    str, StringConstraints(min_length=10, max_length=256), AfterValidator(_encodable)
]
Presented = Annotated[
    str, StringConstraints(min_length=1, max_length=2048), AfterValidator(_encodable)
]
Name = Annotated[str, StringConstraints(max_length=128), AfterValidator(_printable)]
GivenName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, strip_whitespace=True),
    AfterValidator(_printable),
]
Profile = Annotated[dict[str, Any], AfterValidator(_small)]
ScopeName = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9:._-]{0,63})$")]
# Exact, so a string, and without an exponent.
Money = Annotated[
    Decimal,
    Field(ge=0, le=9_000_000, decimal_places=9),
    PlainSerializer(lambda usd: format(usd.normalize(), "f"), return_type=str, when_used="json"),
]
Count = Annotated[int, Field(ge=0, le=2_000_000_000)]
Names = Annotated[
    tuple[
        Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)],
        ...,
    ],
    Field(max_length=256),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Register(_Request):
    email: Email
    password: Password
    name: Name = ""


class Login(_Request):
    email: Claimed
    password: Presented
    device_token: Annotated[str, StringConstraints(max_length=2048)] | None = Field(
        None,
        description="Of an earlier sign-in on this device: what others try at the account then does "
        "not slow this one down.",
    )


class Refresh(_Request):
    refresh_token: Presented


class Logout(_Request):
    everywhere: bool = Field(False, description="End all of your sessions, not this one only.")


class Forgot(_Request):
    email: Claimed


class Reset(_Request):
    token: Presented
    password: Password


class ChangePassword(_Request):
    current_password: Annotated[
        str, StringConstraints(max_length=256), AfterValidator(_encodable)
    ] = Field("", description="May be left out by who has none yet.")
    new_password: Password


class ChangeProfile(_Request):
    name: Name | None = None
    profile: Profile | None = Field(None, description="Replaces what was there.")


class BeginSignIn(_Request):
    provider: Annotated[str, StringConstraints(max_length=32)]
    redirect_uri: Annotated[str, StringConstraints(max_length=2048)]


class FinishSignIn(_Request):
    state: Presented
    code: Presented


class NewOrganisation(_Request):
    name: GivenName


class NewMember(_Request):
    email: Email
    name: Name = ""
    role: Role = Role.MEMBER


class NewServiceAccount(_Request):
    name: GivenName
    role: Role = Role.MEMBER


class ChangeMember(_Request):
    role: Role | None = None
    disabled: bool | None = None


class ChangeUser(_Request):
    disabled: bool


class NewKey(_Request):
    name: Name = ""
    scopes: Annotated[list[ScopeName], AfterValidator(_storable)] | None = Field(
        None,
        max_length=32,
        description="What it may do; left out: `text`, `jobs:read` and `jobs:write`, as far as its "
        "user may.",
    )
    expires_at: UtcDatetime | None = None
    user: Annotated[str, StringConstraints(max_length=36), AfterValidator(_printable)] | None = (
        Field(None, description="Id of a service account; left out: yourself.")
    )


class RotateKey(_Request):
    overlap_seconds: int = Field(
        0, ge=0, le=7 * 24 * 3600, description="How long the secret before stays good."
    )


class LimitBody(BaseModel):
    """What is left out is not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    open_jobs: Count | None = None
    best_priority: Annotated[int, Field(ge=1, le=5)] | None = Field(
        None, description="The best class of jobs that may be asked for; 1 goes first, 5 last."
    )
    usd_per_day: Money | None = None
    usd_per_month: Money | None = None
    pools: Names | None = Field(None, description="Render pools that may be used.")
    allowed_nodes: Names | None = Field(
        None, description="Patterns of the ComfyUI node classes that graphs may have."
    )
    denied_nodes: Names | None = Field(
        None, description="Patterns of those of them that graphs may not have."
    )


class SubjectLimit(LimitBody):
    subject: str


class UserBody(_Answer):
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
        description="Without a mail server: the token for `POST /password/reset`, to hand over."
    )


class SessionBody(_Answer):
    """RFC 6749's members, and who signed in."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int = Field(description="Seconds.")
    refresh_token: str
    device_token: str | None = Field(
        description="To keep on the device, also after signing out, for `POST /login`; null after a "
        "refresh. It opens nothing by itself."
    )
    user: UserBody


class ResetDone(_Answer):
    device_token: str = Field(description="For `POST /login` with the new password.")


class ProviderBody(_Answer):
    name: str
    issuer: str


class ProviderList(_Answer):
    providers: list[ProviderBody]


class BegunSignIn(_Answer):
    authorization_url: str
    state: str


class OrganisationBody(_Answer):
    id: str
    name: str
    created_at: datetime


class OrganisationList(_Answer):
    organisations: list[OrganisationBody]


class UserList(_Answer):
    users: list[UserBody]


class MemberList(_Answer):
    members: list[UserBody]


class KeyBody(_Answer):
    id: str
    owner: str
    user: str | None
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="Exact to a minute.")


class CreatedKey(KeyBody):
    key: str = Field(description="Shown once: it is not kept.")


class RotatedKey(_Answer):
    id: str
    key: str = Field(description="Shown once: it is not kept.")


class KeyList(_Answer):
    keys: list[KeyBody]


class SigningKeyBody(_Answer):
    kid: str


class LimitList(_Answer):
    limits: list[SubjectLimit]


class AuditEntry(_Answer):
    id: str
    at: datetime
    owner: str
    actor: str
    action: str
    target: str
    details: dict[str, Any]
    request_id: str
    address: str


class AuditPage(_Answer):
    entries: list[AuditEntry]


class WhoAmI(_Answer):
    """What a key or token proves."""

    owner: str
    key_id: str
    user: str | None
    scopes: list[str]
