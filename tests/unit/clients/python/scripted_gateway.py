"""A server with real sockets that sends scripted responses and can break connections."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A scripted response.

    Attributes:
        pieces: the chunks of a streamed body.
        breaks: True to reset the connection after the last piece.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: tuple[bytes, ...] | None = None
    breaks: bool = False


# The request arrives, and its answer is lost.
LOST = Reply(status=0, breaks=True)


@dataclass(frozen=True, kw_only=True)
class ReceivedRequest:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def json_reply(body_value: Any, status: int = 200) -> Reply:
    body = json.dumps(body_value).encode()
    return Reply(status=status, headers={"content-type": "application/json"}, body=body)


def problem_reply(
    status: int, code: str, *, headers: Mapping[str, str] | None = None, **kwargs: Any
) -> Reply:
    """Return an error as docs/reference/errors.md describes it.

    Args:
        kwargs: further members of the body, or other values of its members.
    """
    body = {
        "type": "about:blank", "title": "Some Error", "status": status, "detail": f"wrong: {code}",
        "instance": "/jobs", "code": code, "request_id": "req_7", **kwargs,
    }  # fmt: skip
    return Reply(
        status=status,
        headers={"content-type": "application/problem+json", **(headers or {})},
        body=json.dumps(body).encode(),
    )


def stream_reply(*pieces: bytes, breaks: bool = False) -> Reply:
    return Reply(headers={"content-type": "text/event-stream"}, pieces=pieces, breaks=breaks)


def build_event(event_type: str, data: Any, event_id: str | None = None) -> bytes:
    id_line = f"id: {event_id}\n" if event_id else ""
    return f"{id_line}event: {event_type}\ndata: {json.dumps(data)}\n\n".encode()


class ScriptedGateway:
    """Answers each route with its next scripted reply, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[ReceivedRequest] = []
        self._replies: defaultdict[tuple[str, str], list[Reply]] = defaultdict(list)
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def script(self, method: str, path: str, *replies: Reply) -> None:
        self._replies[method, path].extend(replies)

    def take_next_reply(self, request: ReceivedRequest) -> Reply:
        self.requests.append(request)
        replies = self._replies[request.method, request.path]
        return replies.pop(0) if replies else problem_reply(404, "route_not_found")

    def start(self) -> None:
        """Listen on a free port, or after a stop on the same port as before."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.gateway = self
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Refuse new connections, and close those that clients have kept open."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    gateway: ScriptedGateway
    # A client that keeps its connection must not keep the test.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about clients that have disconnected."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        address = urlsplit(self.path)
        reply = self.server.gateway.take_next_reply(
            ReceivedRequest(
                method=self.command,
                path=address.path,
                query=dict(parse_qsl(address.query, strict_parsing=bool(address.query))),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(int(self.headers.get("content-length", 0))),
            )
        )
        if reply.status:
            self._send(reply)
        if reply.breaks:
            # A reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.pieces is None:
            if reply.status != 204 and "content-length" not in reply.headers:
                self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in reply.pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not reply.breaks:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        """Print nothing, because the requests are recorded."""
