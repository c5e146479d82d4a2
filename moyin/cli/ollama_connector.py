"""Serves the gateway on Ollama's local port, for clients of Ollama that cannot send an API key."""

from __future__ import annotations

from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from moyin.cli.connector import Connector
from moyin.errors import CrossSiteRequest, MoyinError
from moyin.stack.profile import Profile

# The gateway serves Ollama's own paths below this prefix; paths of OpenAI's protocol are the same.
_GATEWAY_PREFIX = "/v1/ollama"
# The forwarded paths only call models. Programs on this machine must not use the key for anything
# else, such as stored responses and batches.
_OPENAI_PATHS = frozenset(
    f"/v1/{name}"
    for name in (
        "chat/completions", "completions", "embeddings", "messages", "messages/count_tokens",
        "models", "responses",
    )
)  # fmt: skip
_MODEL_PATH = "/v1/models/"
_ALIVE = "Ollama is running"
# Paths that change the models of an Ollama host, which a header names.
_HOST_PATHS = tuple(
    f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete", "blobs/")
)
_HOST_HEADER = "x-moyin-backend"


class OllamaConnector(Connector):
    """Forwards Ollama's and OpenAI's calls to the gateway, and refuses all other requests.

    Args:
        backend: the Ollama host for calls that change a host's models, such as ``/api/pull``; if
            None, the client or the gateway chooses the host.
    """

    def __init__(self, profile: Profile, backend: str | None = None) -> None:
        super().__init__(profile)
        self._backend = backend

    def _build_headers(self, request: web.Request) -> CIMultiDict[str]:
        headers = super()._build_headers(request)
        if self._backend is not None and request.path.startswith(_HOST_PATHS):
            headers.setdefault(_HOST_HEADER, self._backend)
        return headers

    async def _forward_request(self, request: web.Request, target_url: URL) -> web.StreamResponse:
        if request.path in _OPENAI_PATHS or request.path.startswith(("/api/", _MODEL_PATH)):
            return await super()._forward_request(request, target_url)
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return web.Response(text=_ALIVE)
        return web.json_response(
            {
                "error": f"there is no route {request.method} {request.path}: this port has only "
                "Ollama's API and the calls of models of OpenAI's API"
            },
            status=404,
        )

    async def _relay_socket(self, request: web.Request, target_url: URL) -> web.StreamResponse:
        raise CrossSiteRequest(
            "this port does not accept WebSockets, because Ollama's API has none"
        )

    def _build_target_url(self, request: web.Request) -> URL:
        target_url = super()._build_target_url(request)
        if not request.path.startswith("/api/"):
            return target_url
        return URL(f"{self._gateway_url}{_GATEWAY_PREFIX}{request.raw_path}", encoded=True)

    def _render_error(self, status: int, error: MoyinError) -> web.Response:
        """Return an error response in Ollama's format."""
        return web.json_response({"error": error.message, "code": error.code}, status=status)
