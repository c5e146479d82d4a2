"""Converts domain objects to the bodies of the accounts API."""

from __future__ import annotations

from dataclasses import asdict

from moyin.access.accounts.signin import SignInResult
from moyin.access.protocol import wire
from moyin.domain.account import OpenSession, Organisation, User
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.store.audit import AuditEntry
from moyin.store.keys import ApiKey


def build_user(user: User) -> wire.UserBody:
    return wire.UserBody(
        id=user.id,
        kind=user.kind,
        email=user.email,
        name=user.name,
        organisation=user.organisation,
        role=user.role,
        profile=dict(user.profile),
        disabled=user.disabled_at is not None,
        created_at=user.created_at,
    )


def build_session(result: SignInResult) -> wire.SessionBody:
    return wire.SessionBody(
        access_token=result.access_token,
        expires_in=result.expires_in,
        refresh_token=result.refresh_token,
        device_token=result.device_token,
        user=build_user(result.user),
    )


def build_organisation(organisation: Organisation) -> wire.OrganisationBody:
    return wire.OrganisationBody(**asdict(organisation))


def build_key(key: ApiKey) -> wire.KeyBody:
    return wire.KeyBody(**{**asdict(key), "scopes": sorted(key.scopes)})


def build_limit(limit: Limit) -> wire.SubjectLimit:
    return wire.SubjectLimit(**asdict(limit))


def build_audit_entry(entry: AuditEntry) -> wire.AuditEntry:
    return wire.AuditEntry(id=entry.id, at=entry.at, **asdict(entry.event))


def build_open_session(session: OpenSession, current_id: str) -> wire.OpenSession:
    return wire.OpenSession(**asdict(session), current=session.id == current_id)


def build_identity(identity: Identity) -> wire.WhoAmI:
    return wire.WhoAmI(
        owner=identity.owner,
        key_id=identity.key_id,
        user=identity.user,
        scopes=sorted(identity.scopes),
    )
