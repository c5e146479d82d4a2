"""Constructs the services of one replica of the accounts app from its settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from deployments.accounts.app import AccountsParts
from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.accounts.api_keys import ApiKeyService
from moyin.access.accounts.attempt_limits import AttemptLimits, DeviceTokens
from moyin.access.accounts.mail import Mailer
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.accounts.passwords import PasswordService
from moyin.access.accounts.signin import SignInService
from moyin.access.accounts.throttle import Throttle
from moyin.access.gatekeeper.asgi import TrustedProxies
from moyin.access.gatekeeper.identity import create_authenticator
from moyin.access.gatekeeper.limits import create_meter
from moyin.access.gatekeeper.observation import Observer
from moyin.settings import Settings
from moyin.store.audit import AuditLog
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.reauthorization import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Database
from moyin.store.users import UserStore

__all__ = ["new_parts"]

_log = logging.getLogger(__name__)
_PURGE_SECONDS = 3600.0


def new_parts(
    settings: Settings,
    *,
    observer: Observer,
    mailer: Mailer,
    token_lifetime: timedelta,
    session_idle: timedelta,
) -> AccountsParts:
    """Return the services of one replica.

    Args:
        token_lifetime: the lifetime of access tokens.
        session_idle: the time after which a session ends that is not refreshed.
    """
    database = Database(settings.sql_url)
    signing_key = settings.signing_key()
    users = UserStore(database)
    sessions = SessionStore(database, idle=session_idle)
    limits = LimitStore(database)
    audit = AuditLog(database)
    signing_keys = SigningKeyStore(database, signing_key)
    transactions = ReauthorizedTransactions(database)
    token_issuer = AccessTokenIssuer(signing_keys, token_lifetime)
    throttle = Throttle(settings.redis_url, fail_open=settings.rates_fail_open)
    devices = DeviceTokens(signing_key)
    open_id = OpenIdSignIn(settings.redis_url, throttle)
    meter = create_meter(settings)
    sign_in = SignInService(
        users=users,
        sessions=sessions,
        passwords=PasswordService(),
        token_issuer=token_issuer,
        attempt_limits=AttemptLimits(throttle, devices),
        devices=devices,
        mailer=mailer,
        limits=limits,
        transactions=transactions,
        database=database,
    )

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await database.ensure_schema()
        purging = asyncio.create_task(_purge_hourly(sessions))
        yield
        purging.cancel()
        await asyncio.gather(purging, return_exceptions=True)
        await sign_in.close()
        await open_id.close()
        await throttle.close()
        await meter.close()
        await database.close()

    return AccountsParts(
        sign_in=sign_in,
        open_id=open_id,
        organisations=OrganisationService(
            users=users, sessions=sessions, audit=audit, sign_in=sign_in, transactions=transactions
        ),
        api_keys=ApiKeyService(
            users=users,
            keys=KeyStore(database),
            limits=limits,
            audit=audit,
            signing_keys=signing_keys,
            transactions=transactions,
        ),
        token_issuer=token_issuer,
        users=users,
        authenticator=create_authenticator(database, signing_key, cached=False),
        observer=observer,
        proxies=TrustedProxies(settings.trusted_proxies),
        meter=meter,
        checks={"database": database.ping},
        lifespan=lifespan,
    )


async def _purge_hourly(sessions: SessionStore) -> None:
    """Delete ended sessions every hour until cancelled."""
    while True:
        await asyncio.sleep(_PURGE_SECONDS)
        try:
            _log.info("deleted %d ended sessions", await sessions.purge())
        except (SQLAlchemyError, OSError) as error:
            _log.warning("could not delete ended sessions: %s", error)
