"""Provides the accounts of an organisation without Valkey, and callers from it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from deployments.accounts.app import AccountsServices, new_services
from moyin.access.accounts.caller import Caller
from moyin.access.accounts.passwords import PasswordService
from moyin.access.accounts.signin import SignInResult
from moyin.access.gatekeeper.observation import NoObserver
from moyin.domain.account import Role
from moyin.domain.identity import Identity
from moyin.settings import Settings
from moyin.store.audit import AuditFilter, AuditLog
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.unit.access.accounts.test_passwords import QUICK

SECRET = "0123456789abcdef0123456789abcdef"
PASSWORD = "correct horse battery"


class NoMail:
    """A mailer that sends nothing."""

    can_deliver = False

    async def send(self, mail: object) -> None:
        raise AssertionError("no mail may be sent")


@dataclass
class Studio:
    """The account services, an operator and an organisation."""

    parts: AccountsServices
    database: Database
    operator: Identity
    organisation: str

    async def add_member(self, role: Role = Role.ADMIN) -> tuple[SignInResult, Identity]:
        """Add a member and sign in as the member; return the session and the identity in its token."""
        email = f"{secrets.token_hex(6)}@example.com"
        _, token = await self.parts.organisations.add_member(
            make_caller(self.operator), self.organisation, email=email, name="", role=role
        )
        await self.parts.sign_in.reset_password(str(token), PASSWORD, "")
        session = await self.parts.sign_in.sign_in(email, PASSWORD, "")
        return session, await self.parts.authenticator.authenticate(session.access_token)

    async def list_audited_actions(self) -> list[str]:
        """Return the actions in the audit log, in order."""
        return [
            e.event.action
            for e in await AuditLog(self.database).list_entries(AuditFilter(), limit=200)
        ]

    async def count_keys(self) -> int:
        """Return the number of API keys."""
        return len(await KeyStore(self.database).list_all())


def make_caller(identity: Identity) -> Caller:
    """Return a `Caller` with this identity."""
    return Caller(identity=identity, request_id="r", address="")


@pytest.fixture
async def studio(tmp_path: Path) -> AsyncIterator[Studio]:
    settings = Settings(data=tmp_path, redis_url="redis://127.0.0.1:1/0", secret=SECRET)
    services = new_services(
        settings,
        observer=NoObserver(),
        mailer=NoMail(),
        token_lifetime=timedelta(minutes=5),
        session_idle=timedelta(days=1),
    )
    services.sign_in._passwords = PasswordService(QUICK)
    async with services.lifespan():
        database = Database(settings.sql_url)
        _, operator_key = await KeyStore(database).create("admin", "operator")
        operator = await services.authenticator.authenticate(operator_key)
        organisation = await services.organisations.create_organisation(
            make_caller(operator), "studio"
        )
        yield Studio(services, database, operator, organisation.id)
        await database.close()
