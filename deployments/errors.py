"""Renders errors in the format that a path's clients expect, including errors of Ray Serve.

Serve itself responds, in plain text, when a replica gets a request for a path of another app, when
Serve's proxy has no route or no replica for a request, and when a request is dropped or times out.
If Serve sends no response at all, uvicorn sends its own error page. HAProxy formats its own errors
in the same way, in `moyin/stack/haproxy.lua`.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.models.errors import render_error as render_models_error
from moyin.access.gatekeeper import SECURITY_HEADERS, ErrorBody, render_problem_details
from moyin.comfy_api.protocol.errors import render_error as render_comfyui_error
from moyin.comfy_api.protocol.paths import is_comfyui_path
from moyin.comfy_api.protocol_v2.errors import render_error as render_comfyui_v2_error
from moyin.errors import BackendTimeout, MoyinError, ServiceUnavailable, WorkerLost
from moyin.http.problems import render_error_event
from moyin.text.protocol.ollama.errors import render_error as render_ollama_error
from moyin.text.protocol.ollama.errors import render_error_event as render_ollama_error_event

# Error renderers of the apps that HAProxy routes to by prefix; all other paths are the gateway's.
_RENDERERS = {"v1": render_models_error, "accounts": render_problem_details}
# Ollama's own paths, which the shipped route table forwards to the models app. A request that the
# gateway rejects gets the error that Ollama would send.
_OLLAMA_PATHS = frozenset(
    f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "embed", "version")
)
# Other paths below /api/v2 belong to ComfyUI's first API.
_COMFYUI_V2_PATHS = ("/api/v2/jobs", "/api/v2/assets")
# Load balancers and HAProxy's health checks read the status of Serve's own endpoints.
_SERVE_PATH_PREFIX = "/-/"
# Serve's own errors have only these headers. Errors of apps have a length or another content type.
_SERVE_ERROR_HEADERS = frozenset({b"content-type", b"retry-after", b"x-request-id"})
_INTERNAL_ERROR = "an internal error occurred; the server's log has the cause"
_PLAIN_TEXT = b"text/plain"
_RETRY_AFTER = 5


def find_app_prefix(path: str) -> str | None:
    """Return the path prefix of the app that serves ``path``, or None for the gateway."""
    prefix = path[1:].partition("/")[0]
    return prefix if prefix in _RENDERERS else None


def render_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    """Render ``error`` in the format of the app that serves ``path``."""
    prefix = find_app_prefix(path)
    render = _render_gateway_error if prefix is None else _RENDERERS[prefix]
    return render(error, request_id, path)


def render_stream_error(
    error: MoyinError, request_id: str, path: str, media_type: str
) -> bytes | None:
    """Render ``error`` as the last event of a stream.

    Returns:
        None if ``media_type`` is not a media type of event streams.
    """
    if path in _OLLAMA_PATHS:
        return (
            render_ollama_error_event(error, request_id)
            if media_type == "application/x-ndjson"
            else None
        )
    return render_error_event(error, request_id, path, media_type)


def _render_gateway_error(error: MoyinError, request_id: str, path: str) -> ErrorBody:
    if path in _OLLAMA_PATHS:
        return render_ollama_error(error, request_id, path)
    if path.startswith(_COMFYUI_V2_PATHS):
        return render_comfyui_v2_error(error, request_id, path)
    if is_comfyui_path(path):
        return render_comfyui_error(error, request_id, path)
    return render_problem_details(error, request_id, path)


class ServeErrorMiddleware:
    """Replaces Serve's own error responses and does not change the responses of the apps."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVE_PATH_PREFIX):
            await self._app(scope, receive, send)
            return
        response = _ReplaceableResponse(scope, send)
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            if not response.has_started:
                await response.send_error(MoyinError(_INTERNAL_ERROR))
            raise
        if not response.has_started:
            # Serve's proxy sends no response when the replica died or failed during the request.
            await response.send_error(
                WorkerLost(
                    "the replica ended before it answered; the request may have been carried out",
                    retry_after=1,
                )
            )


class _ReplaceableResponse:
    """Passes a response on to the client, but replaces an error response of Serve itself."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.has_started = False
        self._is_replaced = False

    # This is not a coroutine function, because that would add a coroutine to every message of every
    # response.
    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the response on, or drop it if the response was replaced."""
        if self._is_replaced:
            return _drop_message()
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and (error := _translate_error(message)) is not None:
                return self.send_error(error, message["headers"])
            self.has_started = True
        return self._send(message)

    async def send_error(
        self, error: MoyinError, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send ``error`` instead of the response.

        Args:
            headers: the headers of the replaced response, from which the request id is taken.
        """
        self.has_started = self._is_replaced = True
        request_id = (
            _find_request_id(headers)
            or _find_request_id(self._scope["headers"])
            or uuid.uuid4().hex
        )
        error_body = render_error(error, request_id, self._scope["path"])
        start_headers = [
            (b"content-length", str(len(error_body.body)).encode()),
            (b"x-request-id", request_id.encode("latin-1")),
            *(
                (name.encode(), value.encode("latin-1"))
                for name, value in error_body.headers.items()
            ),
            *SECURITY_HEADERS,
        ]
        await self._send(
            {"type": "http.response.start", "status": error_body.status, "headers": start_headers}
        )
        await self._send({"type": "http.response.body", "body": error_body.body})


async def _drop_message() -> None:
    """Discard a message of a response that was replaced."""


def _translate_error(start_message: Message) -> MoyinError | None:
    """Return the error that replaces a response; None if an app, and not Serve, sent it.

    Args:
        start_message: the response's first ASGI message, with its status and headers.
    """
    status: int = start_message["status"]
    headers = {name.lower(): value for name, value in start_message.get("headers", ())}
    if (
        not headers.get(b"content-type", b"").startswith(_PLAIN_TEXT)
        or headers.keys() - _SERVE_ERROR_HEADERS
    ):
        return None
    match status:
        case 404:
            # The proxy's routes are out of date because the app is starting or was removed.
            return ServiceUnavailable(
                "the service is starting or restarting; try again", retry_after=_RETRY_AFTER
            )
        case 408:
            return BackendTimeout(
                "the replica did not answer in time; try again", retry_after=_RETRY_AFTER
            )
        case 429 | 503:
            return ServiceUnavailable(
                "the service is overloaded; try again", retry_after=_RETRY_AFTER
            )
        case 500:
            return MoyinError(_INTERNAL_ERROR)
        case _:
            return None


def _find_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    return next((v.decode("latin-1") for n, v in headers if n.lower() == b"x-request-id"), None)
