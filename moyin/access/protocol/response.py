"""Translates the domain to response bodies of the accounts API."""

from __future__ import annotations

from moyin.access.accounts.signin import SignedIn
from moyin.access.protocol import wire
from moyin.domain.account import Organisation, User
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.store.audit import AuditEntry
from moyin.store.keys import ApiKey

__all__ = [
    "audit_entry",
    "key_body",
    "limit_body",
    "organisation_body",
    "session_body",
    "to_limit",
    "user_body",
    "who_am_i",
]


def user_body(user: User) -> wire.UserBody:
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


def session_body(signed_in: SignedIn) -> wire.SessionBody:
    return wire.SessionBody(
        access_token=signed_in.access_token,
        expires_in=signed_in.expires_in,
        refresh_token=signed_in.refresh_token,
        device_token=signed_in.device_token,
        user=user_body(signed_in.user),
    )


def organisation_body(organisation: Organisation) -> wire.OrganisationBody:
    return wire.OrganisationBody(
        id=organisation.id, name=organisation.name, created_at=organisation.created_at
    )


def key_body(key: ApiKey) -> wire.KeyBody:
    return wire.KeyBody(
        id=key.id,
        owner=key.owner,
        user=key.user,
        name=key.name,
        scopes=sorted(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def to_limit(subject: str, body: wire.LimitBody) -> Limit:
    return Limit(subject=subject, **body.model_dump())


def limit_body(limit: Limit) -> wire.SubjectLimit:
    return wire.SubjectLimit(
        subject=limit.subject,
        requests_per_minute=limit.requests_per_minute,
        tokens_per_minute=limit.tokens_per_minute,
        concurrent_requests=limit.concurrent_requests,
        open_jobs=limit.open_jobs,
        best_priority=limit.best_priority,
        usd_per_day=limit.usd_per_day,
        usd_per_month=limit.usd_per_month,
        pools=limit.pools,
        allowed_nodes=limit.allowed_nodes,
        denied_nodes=limit.denied_nodes,
    )


def audit_entry(entry: AuditEntry) -> wire.AuditEntry:
    event = entry.event
    return wire.AuditEntry(
        id=entry.id,
        at=entry.at,
        owner=event.owner,
        actor=event.actor,
        action=event.action,
        target=event.target,
        details=dict(event.details),
        request_id=event.request_id,
        address=event.address,
    )


def who_am_i(identity: Identity) -> wire.WhoAmI:
    return wire.WhoAmI(
        owner=identity.owner,
        key_id=identity.key_id,
        user=identity.user,
        scopes=sorted(identity.scopes),
    )
