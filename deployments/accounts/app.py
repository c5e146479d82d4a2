"""Builds the accounts app as ASGI from its parts, without Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi

from deployments.accounts.routes.callers import Callers
from deployments.accounts.routes.keys import key_routes, limit_routes, signing_key_routes
from deployments.accounts.routes.me import me_routes
from deployments.accounts.routes.organisations import organisation_routes
from deployments.accounts.routes.signin import sign_in_routes
from deployments.health import Check, health_routes
from deployments.ingress import new_fastapi
from deployments.openapi import document_security
from deployments.problems import document_problems
from deployments.swagger import DOCS
from moyin.access.accounts.access_tokens import AccessTokenIssuer
from moyin.access.accounts.api_keys import ApiKeyService
from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.accounts.signin import SignInService
from moyin.access.gatekeeper import Authenticator, Gatekeeper, render_problem_details
from moyin.access.gatekeeper.asgi import Receive, Scope, Send, TrustedProxies
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.observation import Observer
from moyin.store.users import UserStore

__all__ = ["AccountsParts", "new_app"]

_PREFIX = "/accounts"
_PUBLIC = frozenset(
    f"{_PREFIX}/{name}"
    for name in (
        "healthz",
        "readyz",
        "openapi.json",
        *DOCS,
        ".well-known/jwks.json",
        "register",
        "login",
        "refresh",
        "password/forgot",
        "password/reset",
        "oidc",
        "oidc/begin",
        "oidc/finish",
    )
)
_MAX_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class AccountsParts:
    """Holds the services that the routes call.

    Attributes:
        meter: counts requests against limits.
        checks: the checks of ``/readyz``, by name.
        lifespan: prepares the services before the first request and closes them after the last.
    """

    sign_in: SignInService
    open_id: OpenIdSignIn
    organisations: OrganisationService
    api_keys: ApiKeyService
    token_issuer: AccessTokenIssuer
    users: UserStore
    authenticator: Authenticator
    observer: Observer
    proxies: TrustedProxies
    meter: RequestMeter
    checks: Mapping[str, Check]
    lifespan: Callable[[], AbstractAsyncContextManager[None]]


def new_app(parts: AccountsParts) -> Gatekeeper:
    """Return the accounts app behind its gatekeeper. It serves paths below ``/accounts``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with parts.lifespan():
            yield

    app = new_fastapi(
        "Moyin accounts",
        errors=render_problem_details,
        description="Players, members, organisations, API keys, limits and budgets.",
        lifespan=lifespan,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    callers = Callers(parts.proxies)
    app.include_router(health_routes(parts.checks))
    app.include_router(_jwks_routes(parts.token_issuer))
    app.include_router(sign_in_routes(parts.sign_in, parts.open_id, callers))
    app.include_router(me_routes(parts.users, parts.sign_in, callers))
    app.include_router(organisation_routes(parts.organisations, callers))
    app.include_router(key_routes(parts.api_keys, callers))
    app.include_router(limit_routes(parts.api_keys, callers))
    app.include_router(signing_key_routes(parts.api_keys, callers))

    async def with_root_path(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": scope.get("root_path") or _PREFIX}, receive, send)

    return Gatekeeper(
        AuthorizationMiddleware(with_root_path, scope_of=lambda _: None, meter=parts.meter),
        service="accounts",
        authenticator=parts.authenticator,
        errors=render_problem_details,
        max_body_bytes=_MAX_BODY_BYTES,
        observer=parts.observer,
        public=_PUBLIC,
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            servers=[{"url": _PREFIX}],
        )
        document_problems(document)
        document_security(document, lambda path: f"{_PREFIX}{path}" in _PUBLIC)
        app.openapi_schema = document
    return app.openapi_schema


def _jwks_routes(token_issuer: AccessTokenIssuer) -> APIRouter:
    router = APIRouter(tags=["sign-in"])

    @router.get("/.well-known/jwks.json")
    async def jwks(response: Response) -> dict[str, Any]:
        """Return the public keys that verify access tokens (RFC 7517)."""
        response.headers["cache-control"] = "public, max-age=300"
        return dict(await token_issuer.get_jwks())

    return router
