"""Adds CORS and security headers for browsers."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moyin.access.gatekeeper import SECURITY_HEADERS

__all__ = ["SecurityHeaders", "cors"]

# Response headers that pages of other origins may read, besides the CORS-safelisted ones.
_EXPOSED = (
    "location", "retry-after", "x-request-id", "ratelimit-limit", "ratelimit-remaining",
    "ratelimit-reset", "x-moyin-backend", "x-moyin-model", "x-moyin-route", "x-moyin-cost-usd",
)  # fmt: skip


def cors(origins: str) -> list[Middleware]:
    """Return the middleware that lets pages from ``origins`` (comma-separated) call; [] for none.

    Credentials are not allowed: such pages send keys and tokens in headers. The only session cookie, of
    ComfyUI's page, works on the gateway's own pages only.
    """
    allowed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    if not allowed:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            max_age=3600,
        )
    ]


class SecurityHeaders:
    """Adds headers that forbid content sniffing, framing and referrers to every response.

    Headers that the app sets itself are kept.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += [pair for pair in SECURITY_HEADERS if pair[0] not in present]
            await send(message)

        await self._app(scope, receive, secured)
