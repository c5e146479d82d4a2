"""Headers for browsers: who may call from which page, and what a page may do with an answer."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moyin.access.gatekeeper import SECURITY_HEADERS

__all__ = ["SecurityHeaders", "cors"]

# What a page may read of an answer, besides the few that every page may.
_EXPOSED = (
    "location", "retry-after", "x-request-id", "ratelimit-limit", "ratelimit-remaining",
    "ratelimit-reset", "x-moyin-backend", "x-moyin-model", "x-moyin-route", "x-moyin-cost-usd",
)  # fmt: skip


def cors(origins: str) -> list[Middleware]:
    """The middleware that lets pages from ``origins`` (comma-separated) call; none: no middleware.

    Without credentials: their pages send keys and tokens in headers. The one cookie that says who
    somebody is, ComfyUI's page's, is good from the door's own pages only.
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
    """Adds to every answer of an app what keeps browsers from guessing, framing and telling on.

    What the app says itself stands.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                said = {name.lower() for name, _ in headers}
                headers += [pair for pair in SECURITY_HEADERS if pair[0] not in said]
            await send(message)

        await self._app(scope, receive, secured)
