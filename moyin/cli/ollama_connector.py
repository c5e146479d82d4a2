"""Serves the gateway on Ollama's local port, for clients of Ollama that cannot send an API key."""

from __future__ import annotations

from aiohttp import web
from yarl import URL

from moyin.cli.connector import Connector
from moyin.errors import CrossSiteRequest, MoyinError

# Ollama's own paths are below this prefix at the gateway; those of OpenAI's protocol are the same.
_GATEWAY_PREFIX = "/v1/ollama"
# Calls of models only: programs on this machine get no others with the key.
_OPENAI_PATHS = tuple(
    f"/v1/{name}"
    for name in ("chat/completions", "completions", "embeddings", "messages", "models", "responses")
)
_ALIVE = "Ollama is running"


class OllamaConnector(Connector):
    """Forwards Ollama's and OpenAI's calls to the gateway, and answers all other paths itself."""

    async def _forward(self, request: web.Request, target: URL) -> web.StreamResponse:
        if request.path.startswith("/api/") or request.path.startswith(_OPENAI_PATHS):
            return await super()._forward(request, target)
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return web.Response(text=_ALIVE)
        return web.json_response(
            {"error": f"there is no route {request.method} {request.path}"}, status=404
        )

    async def _relay_socket(self, request: web.Request, target: URL) -> web.StreamResponse:
        raise CrossSiteRequest("Ollama's clients use no WebSockets, so this port has none")

    def _build_target_url(self, request: web.Request) -> URL:
        target = super()._build_target_url(request)
        if not request.path.startswith("/api/"):
            return target
        return URL(f"{self._gateway_url}{_GATEWAY_PREFIX}{request.raw_path}", encoded=True)

    def _render_error(self, status: int, error: MoyinError) -> web.Response:
        """Return an error response in Ollama's format."""
        return web.json_response({"error": error.message, "code": error.code}, status=status)
