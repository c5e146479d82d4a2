"""The accounts app as ASGI, made of its parts; knows nothing of Ray Serve."""

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
from moyin.access.accounts.signin import SignIn
from moyin.access.gatekeeper import Authenticator, Gatekeeper, problem_details
from moyin.access.gatekeeper.addresses import TrustedProxies
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.authorization import AuthorizationMiddleware
from moyin.access.gatekeeper.limits import Meter
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
    """What the routes work with.

    Attributes:
        meter: counts for limits.
        checks: what ``/readyz`` asks, by name.
        lifespan: opens what must be open before the first request, and closes all of it.
    """

    sign_in: SignIn
    open_id: OpenIdSignIn
    office: OrganisationService
    keyring: ApiKeyService
    mint: AccessTokenIssuer
    users: UserStore
    authenticator: Authenticator
    observer: Observer
    proxies: TrustedProxies
    meter: Meter
    checks: Mapping[str, Check]
    lifespan: Callable[[], AbstractAsyncContextManager[None]]


def new_app(parts: AccountsParts) -> Gatekeeper:
    """The accounts app behind its gatekeeper. It serves paths below ``/accounts``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with parts.lifespan():
            yield

    app = new_fastapi(
        "Moyin accounts",
        errors=problem_details,
        description="Players, members, organisations, API keys, limits and budgets.",
        lifespan=lifespan,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    callers = Callers(parts.proxies)
    app.include_router(health_routes(parts.checks))
    app.include_router(_key_set(parts.mint))
    app.include_router(sign_in_routes(parts.sign_in, parts.open_id, callers))
    app.include_router(me_routes(parts.users, parts.sign_in, callers))
    app.include_router(organisation_routes(parts.office, callers))
    app.include_router(key_routes(parts.keyring, callers))
    app.include_router(limit_routes(parts.keyring, callers))
    app.include_router(signing_key_routes(parts.keyring, callers))

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": scope.get("root_path") or _PREFIX}, receive, send)

    return Gatekeeper(
        AuthorizationMiddleware(below, scope_of=lambda _: None, meter=parts.meter),
        service="accounts",
        authenticator=parts.authenticator,
        errors=problem_details,
        max_body_bytes=_MAX_BODY_BYTES,
        observer=parts.observer,
        public=_PUBLIC,
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            servers=[{"url": _PREFIX}],
        )
        document_problems(described)
        document_security(described, lambda path: f"{_PREFIX}{path}" in _PUBLIC)
        app.openapi_schema = described
    return app.openapi_schema


def _key_set(mint: AccessTokenIssuer) -> APIRouter:
    router = APIRouter(tags=["sign-in"])

    @router.get("/.well-known/jwks.json")
    async def jwks(response: Response) -> dict[str, Any]:
        """The public keys that prove access tokens (RFC 7517)."""
        response.headers["cache-control"] = "public, max-age=300"
        return dict(await mint.jwks())

    return router
