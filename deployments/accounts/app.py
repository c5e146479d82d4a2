"""Builds the accounts app as an ASGI app, with the services of a replica and without Ray Serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from sqlalchemy.exc import SQLAlchemyError

from deployments.accounts.routes.browser_sessions import new_browser_session_routes
from deployments.accounts.routes.callers import CallerResolver
from deployments.accounts.routes.keys import (
    new_key_routes,
    new_limit_routes,
    new_signing_key_routes,
)
from deployments.accounts.routes.organisations import new_organisation_routes
from deployments.accounts.routes.signin import new_own_account_routes, new_sign_in_routes
from deployments.health import ServiceCheck, new_health_routes
from deployments.ingress import new_fastapi
from deployments.openapi import document_problems, document_security
from deployments.swagger import DOCS_PATHS
from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.accounts.api_keys import ApiKeyService
from moyin.access.accounts.attempt_limits import AttemptLimits, DeviceTokens
from moyin.access.accounts.mail import Mailer
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.accounts.passwords import PasswordService
from moyin.access.accounts.signin import SignInService
from moyin.access.accounts.throttle import Throttle
from moyin.access.gatekeeper import render_problem_details
from moyin.access.gatekeeper.asgi import Receive, Scope, Send, TrustedProxies
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.credential_finder import CredentialFinder
from moyin.access.gatekeeper.identity import Authenticator, create_authenticator
from moyin.access.gatekeeper.limits import RequestMeter, create_meter
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import Observer
from moyin.access.gatekeeper.replica_memory import MAX_IN_PROGRESS
from moyin.settings import Settings
from moyin.store.audit import AuditLog
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.reauthorization import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Database
from moyin.store.users import UserStore

_log = logging.getLogger(__name__)
_PURGE_SECONDS = 3600.0
_PREFIX = "/accounts"
_PUBLIC = frozenset(
    f"{_PREFIX}/{name}"
    for name in (
        *DOCS_PATHS, "healthz", "readyz", "openapi.json", ".well-known/jwks.json", "register", "login",
        "refresh", "sign-in", "session", "session/renew", "session/end", "password/forgot", "password/reset",
        "oidc", "oidc/begin", "oidc/finish",
    )
)  # fmt: skip
_MAX_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class AccountsServices:
    """Holds the services that the routes of one replica call.

    Attributes:
        checks: the health checks of ``/readyz`` by name.
        lifespan: prepares the services before the first request and closes them after the last.
        max_in_progress: the most requests, and the most WebSockets, of a tenant at a time.
    """

    sign_in: SignInService
    open_id: OpenIdSignIn
    organisations: OrganisationService
    api_keys: ApiKeyService
    token_issuer: AccessTokenIssuer
    users: UserStore
    sessions: SessionStore
    authenticator: Authenticator
    observer: Observer
    proxies: TrustedProxies
    meter: RequestMeter
    checks: Mapping[str, ServiceCheck]
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    max_in_progress: int = MAX_IN_PROGRESS


def new_services(
    settings: Settings,
    *,
    observer: Observer,
    mailer: Mailer,
    token_lifetime: timedelta,
    session_idle: timedelta,
) -> AccountsServices:
    """Create the services of one replica.

    Args:
        token_lifetime: the time for which an access token is valid.
        session_idle: the time after which a session ends unless it is renewed.
    """
    database = Database(settings.sql_url)
    signing_key = settings.signing_key()
    users = UserStore(database)
    sessions = SessionStore(database, idle_timeout=session_idle)
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
        users=users, sessions=sessions, passwords=PasswordService(), token_issuer=token_issuer,
        attempt_limits=AttemptLimits(throttle, devices), devices=devices, mailer=mailer,
        limits=limits, transactions=transactions, database=database,
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await database.ensure_schema()
        purge_task = asyncio.create_task(_delete_ended_sessions_hourly(sessions))
        yield
        purge_task.cancel()
        await asyncio.gather(purge_task, return_exceptions=True)
        await sign_in.close()
        await open_id.close()
        await throttle.close()
        await meter.close()
        await database.close()

    return AccountsServices(
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
            budgets=meter.budgets,
            transactions=transactions,
        ),
        token_issuer=token_issuer,
        users=users,
        sessions=sessions,
        authenticator=create_authenticator(database, signing_key, uses_cache=False),
        observer=observer,
        proxies=TrustedProxies(settings.trusted_proxies),
        meter=meter,
        checks={"database": database.ping},
        lifespan=lifespan,
        max_in_progress=settings.max_requests_in_progress,
    )


async def _delete_ended_sessions_hourly(sessions: SessionStore) -> None:
    """Delete ended sessions every hour until cancelled."""
    while True:
        await asyncio.sleep(_PURGE_SECONDS)
        try:
            _log.info("deleted %d ended sessions of users", await sessions.purge_expired())
        except (SQLAlchemyError, OSError) as error:
            _log.warning("could not delete the ended sessions; trying again in an hour: %s", error)


def new_app(services: AccountsServices) -> Gatekeeper:
    """Return the ASGI app that serves ``/accounts``, behind the gatekeeper."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.lifespan():
            yield

    app = new_fastapi(
        "Moyin accounts",
        errors=render_problem_details,
        description="Players, members, organisations, API keys, limits and budgets.",
        lifespan=lifespan,
    )
    app.openapi = lambda: _build_openapi_document(app)  # type: ignore[method-assign]
    callers = CallerResolver(services.proxies)
    app.include_router(new_health_routes(services.checks))
    app.include_router(_new_jwks_routes(services.token_issuer))
    app.include_router(
        new_sign_in_routes(services.sign_in, services.open_id, services.sessions, callers)
    )
    app.include_router(
        new_browser_session_routes(
            services.sign_in, services.sessions, services.authenticator, callers
        )
    )
    app.include_router(new_own_account_routes(services.users, services.sign_in, callers))
    app.include_router(new_organisation_routes(services.organisations, callers))
    app.include_router(new_key_routes(services.api_keys, callers))
    app.include_router(new_limit_routes(services.api_keys, callers))
    app.include_router(new_signing_key_routes(services.api_keys, callers))

    async def add_root_path(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": scope.get("root_path") or _PREFIX}, receive, send)

    return Gatekeeper(
        AuthorizationMiddleware(add_root_path, scope_of=lambda _: None, meter=services.meter),
        service="accounts", authenticator=services.authenticator, error_renderer=render_problem_details,
        max_body_bytes=_MAX_BODY_BYTES, observer=services.observer, public_paths=_PUBLIC,
        max_in_progress=services.max_in_progress,
        credential_finder=CredentialFinder(may_use_cookie=lambda _: True),
    )  # fmt: skip


def _build_openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the app's OpenAPI document, which is built at the first call and then reused."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes,
            servers=[{"url": _PREFIX}],
        )  # fmt: skip
        document_problems(document)
        document_security(document, lambda path: f"{_PREFIX}{path}" in _PUBLIC)
        app.openapi_schema = document
    return app.openapi_schema


def _new_jwks_routes(token_issuer: AccessTokenIssuer) -> APIRouter:
    """Return the route that serves the public keys for verifying access tokens."""
    router = APIRouter(tags=["sign-in"])

    @router.get("/.well-known/jwks.json")
    async def jwks(response: Response) -> dict[str, Any]:
        """Return the JSON Web Key Set (RFC 7517) that verifies access tokens."""
        response.headers["cache-control"] = "public, max-age=300"
        return dict(await token_issuer.get_jwks())

    return router
