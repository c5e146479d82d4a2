"""Sends raw bytes over HTTP/1.1, because HTTP libraries would correct malformed requests."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RawResponse:
    """A response; ``status`` is 0 if the connection ended without one."""

    status: int
    head: str
    body: bytes

    @property
    def code(self) -> str:
        """Return the code of an error in any protocol, or an empty string if there is none."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return ""
        if not isinstance(body, dict):
            return ""
        error = body.get("error")
        inner_error = error if isinstance(error, dict) else {}
        return str(body.get("code") or inner_error.get("code") or "")


async def send_request(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> RawResponse:
    """Send one request on a new connection, with ``target`` unchanged."""
    request_headers = {"Host": "moyin", "Connection": "close", **(headers or {})}
    if body or method in ("POST", "PUT"):
        request_headers["Content-Length"] = str(len(body))
    head = "\r\n".join(
        (f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in request_headers.items()))
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode("latin-1") + b"\r\n\r\n" + body)
    try:
        async with asyncio.timeout(60):
            return _parse_response(await reader.read())
    finally:
        writer.close()


class SlowClients:
    """Clients that send one byte per second until the server closes the connection.

    Some send the head of a request slowly, others the body. All run in one separate thread.

    Attributes:
        ended: the response and the seconds until the connection was closed, by target.
    """

    def __init__(self, port: int, key: str, targets: Mapping[str, int]) -> None:
        """Start the clients.

        Args:
            key: the API key that they send; empty for none.
            targets: the number of clients by request target; those of the target "" never end the
                head of their request.
        """
        self._port = port
        self._key = key
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._open_all(targets)), daemon=True
        )
        self.ended: dict[str, list[tuple[RawResponse, float]]] = {}
        self._thread.start()

    def wait_until_closed(self, seconds: float) -> None:
        """Wait until all connections have been closed."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "some connections are still open"

    async def _open_all(self, targets: Mapping[str, int]) -> None:
        await asyncio.gather(
            *(self._send_slowly(target) for target, count in targets.items() for _ in range(count))
        )

    async def _send_slowly(self, target: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        writer.write(self._build_request_start(target))
        response_task = asyncio.create_task(_read_until_end(reader))
        try:
            while not response_task.done():
                writer.write(random.choice((b"a", b"b")))
                await asyncio.wait({response_task}, timeout=1)
        except ConnectionError:
            # The server closed the connection. What it sent before that is still read.
            pass
        finally:
            self.ended.setdefault(target, []).append(
                (await response_task, loop.time() - started_at)
            )
            writer.close()

    def _build_request_start(self, target: str) -> bytes:
        head = f"POST {target or '/jobs'} HTTP/1.1\r\nHost: moyin\r\nX-Slow: "
        authorization = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        if target:
            head += (
                f"1\r\n{authorization}Content-Type: application/json\r\n"
                "Content-Length: 60000\r\n\r\n"
            )
        return head.encode()


async def _read_until_end(reader: asyncio.StreamReader) -> RawResponse:
    received_bytes = b""
    try:
        while chunk := await reader.read(65_536):
            received_bytes += chunk
    except ConnectionError:
        return _parse_response(received_bytes)
    return _parse_response(received_bytes)


def _parse_response(received_bytes: bytes) -> RawResponse:
    head, _, body = received_bytes.partition(b"\r\n\r\n")
    status_words: Any = head.split(b" ", 2)
    status = int(status_words[1]) if len(status_words) > 1 else 0
    head_text = head.decode("latin-1").lower()
    if "transfer-encoding: chunked" in head_text:
        body = _join_chunks(body)
    return RawResponse(status=status, head=head_text, body=body)


def _join_chunks(chunks: bytes) -> bytes:
    body = b""
    while chunks:
        size, _, after_size = chunks.partition(b"\r\n")
        length = int(size.partition(b";")[0] or b"0", 16)
        body, chunks = body + after_size[:length], after_size[length + 2 :]
        if length == 0:
            break
    return body
