"""Tests that neither sign-ins nor requests to reset a password reveal which accounts exist."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from argon2 import extract_parameters
from sqlalchemy.exc import OperationalError

from moyin.access.accounts.mail import Mail
from moyin.errors import InvalidCredentials
from tests.unit.access.accounts.studio import Studio


class _Outbox:
    """A mailer that keeps the mails."""

    can_deliver = True

    def __init__(self) -> None:
        self.mails: list[Mail] = []

    async def send(self, mail: Mail) -> None:
        self.mails.append(mail)


@contextmanager
def _record_statements() -> Iterator[list[str]]:
    """Record the SQL statements of all databases during the block."""
    statements: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", record)


async def test_known_and_unknown_emails_cause_the_same_statements(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = await studio.add_member()
    outbox = _Outbox()
    monkeypatch.setattr(studio.parts.sign_in, "_mailer", outbox)
    with _record_statements() as for_unknown:
        await studio.parts.sign_in.request_password_reset("nobody@example.com", "")
    with _record_statements() as for_known:
        await studio.parts.sign_in.request_password_reset(str(session.user.email), "")
    assert for_known == for_unknown != []
    await studio.parts.sign_in.close()
    assert [mail.to for mail in outbox.mails] == [session.user.email]


async def test_a_token_that_cannot_be_stored_is_logged_without_the_email(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session, _ = await studio.add_member()

    async def fail(*_: object) -> str:
        raise OperationalError("INSERT", {}, OSError("disk full"))

    monkeypatch.setattr(studio.parts.sign_in._sessions, "create_reset_token", fail)
    with caplog.at_level(logging.ERROR):
        await studio.parts.sign_in.request_password_reset(str(session.user.email), "")
        await studio.parts.sign_in.close()
    assert session.user.id in caplog.text
    assert str(session.user.email) not in caplog.text


async def test_wrong_passwords_cause_the_same_work_for_known_and_unknown_emails(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = await studio.add_member()
    passwords = studio.parts.sign_in._passwords
    verified_hashes: list[str] = []
    verify = passwords._verify

    def record(password_hash: str, password: str) -> bool:
        verified_hashes.append(password_hash)
        return verify(password_hash, password)

    monkeypatch.setattr(passwords, "_verify", record)
    statements_by_email = {}
    for email in ("nobody@example.com", str(session.user.email)):
        with _record_statements() as statements, pytest.raises(InvalidCredentials):
            await studio.parts.sign_in.sign_in(email, "not the password", "")
        statements_by_email[email] = statements
    for_unknown, for_known = statements_by_email.values()
    assert for_known == for_unknown != []
    for_unknown_hash, for_known_hash = map(extract_parameters, verified_hashes)
    assert for_unknown_hash == for_known_hash
