"""A gateway on a real HTTP server, with responses that the test sets."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


class ScriptedGateway:
    """Answers each route with the JSON in `routes`, or 404, and records the requests.

    Attributes:
        routes: the body by ``METHOD /path``; None is the status 204, bytes are a file.
        requests: method, path with query, body (parsed where it is JSON) and key of each request.
    """

    def __init__(self) -> None:
        self.routes: dict[str, Any] = {}
        self.requests: list[tuple[str, str, Any, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                raw_body = self._read_body()
                key = self.headers.get("authorization")
                try:
                    body: Any = json.loads(raw_body) if raw_body else None
                except ValueError:
                    body = raw_body
                gateway.requests.append((self.command, self.path, body, key))
                route = f"{self.command.replace('HEAD', 'GET')} {urlsplit(self.path).path}"
                if route not in gateway.routes:
                    error = {"code": "not_found", "detail": f"there is no {route}"}
                    self._send(404, json.dumps(error).encode(), "application/problem+json")
                elif (response_body := gateway.routes[route]) is None:
                    self._send(204, b"", "text/plain")
                elif isinstance(response_body, bytes):
                    self._send(200, response_body, "image/png")
                else:
                    self._send(200, json.dumps(response_body).encode(), "application/json")

            def _read_body(self) -> bytes:
                if "chunked" not in self.headers.get("transfer-encoding", ""):
                    return self.rfile.read(int(self.headers.get("content-length", 0)))
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def _send(self, status: int, body: bytes, media_type: str) -> None:
                self.send_response(status)
                self.send_header("content-type", media_type)
                self.send_header("content-length", str(len(body)))
                if media_type == "image/png":
                    self.send_header("content-disposition", "inline; filename*=UTF-8''d%2Fawn.png")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing, because the requests are recorded."""

        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler._answer)
        return Handler
