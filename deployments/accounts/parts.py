"""The parts of one replica of the accounts app, made from its settings."""

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
from moyin.access.accounts.bounds import Bounds
from moyin.access.accounts.devices import Devices
from moyin.access.accounts.mail import Mailer
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.accounts.passwords import Passwords
from moyin.access.accounts.signin import SignIn
from moyin.access.accounts.throttle import Throttle
from moyin.access.gatekeeper.addresses import TrustedProxies
from moyin.access.gatekeeper.identity import new_authenticator
from moyin.access.gatekeeper.limits import new_meter
from moyin.access.gatekeeper.observation import Observer
from moyin.settings import Settings
from moyin.store.audit import AuditLog
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.reauthorized import ReauthorizedTransactions
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
    access: timedelta,
    idle: timedelta,
) -> AccountsParts:
    """
    Args:
        access: lifetime of access tokens.
        idle: a session that is not refreshed for so long is over.
    """
    database = Database(settings.sql_url)
    signing_key = settings.signing_key()
    users = UserStore(database)
    sessions = SessionStore(database, idle=idle)
    limits = LimitStore(database)
    audit = AuditLog(database)
    signing_keys = SigningKeyStore(database, signing_key)
    standing = ReauthorizedTransactions(database)
    mint = AccessTokenIssuer(signing_keys, access)
    throttle = Throttle(settings.redis_url, fail_open=settings.rates_fail_open)
    devices = Devices(signing_key)
    open_id = OpenIdSignIn(settings.redis_url, throttle)
    meter = new_meter(settings)
    sign_in = SignIn(
        users=users,
        sessions=sessions,
        passwords=Passwords(),
        mint=mint,
        bounds=Bounds(throttle, devices),
        devices=devices,
        mailer=mailer,
        limits=limits,
        standing=standing,
        database=database,
    )

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await database.ready()
        purging = asyncio.create_task(_purge_for_ever(sessions))
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
        office=OrganisationService(
            users=users, sessions=sessions, audit=audit, sign_in=sign_in, standing=standing
        ),
        keyring=ApiKeyService(
            users=users,
            keys=KeyStore(database),
            limits=limits,
            audit=audit,
            signing_keys=signing_keys,
            standing=standing,
        ),
        mint=mint,
        users=users,
        authenticator=new_authenticator(database, signing_key, cached=False),
        observer=observer,
        proxies=TrustedProxies(settings.trusted_proxies),
        meter=meter,
        checks={"database": database.ping},
        lifespan=lifespan,
    )


async def _purge_for_ever(sessions: SessionStore) -> None:
    while True:
        await asyncio.sleep(_PURGE_SECONDS)
        try:
            _log.info("%d sessions that were over are forgotten", await sessions.purge())
        except (SQLAlchemyError, OSError) as error:
            _log.warning("sessions were not purged: %s", error)
