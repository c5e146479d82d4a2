"""Measures streams through a gateway: time to the first token, and delays of the later tokens.

The client searches the received bytes instead of parsing them, so that it needs little time itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks import paced
from benchmarks.gateways import Gateway

_CONTENT = re.compile(rb'"content":\s*"(\d+) ')
_ANY_CONTENT = re.compile(rb'"content":\s*"[^"]')
_DONE = b"data: [DONE]"
# Longer than a match of `_CONTENT`, which may be split between two reads.
_OVERLAP = 64


@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """Percentiles of the milliseconds from a request to its first token, one request at a time."""

    p50_ms: float
    p99_ms: float

    def minus(self, other_times: FirstTokens) -> FirstTokens:
        """Return the differences of these times and ``other_times`` in milliseconds."""
        return FirstTokens(
            p50_ms=self.p50_ms - other_times.p50_ms, p99_ms=self.p99_ms - other_times.p99_ms
        )


@dataclass(frozen=True, kw_only=True)
class HeldStreams:
    """The result of many concurrent streams.

    Attributes:
        streams: the number of streams.
        arrived: the share of their tokens that arrived.
        p50_ms, p99_ms: the delays of tokens.
    """

    streams: int
    arrived: float
    p50_ms: float
    p99_ms: float

    @property
    def is_undelayed(self) -> bool:
        """True if every token arrived without a delay that a reader would notice."""
        return self.arrived == 1 and self.p99_ms <= 100


def measure_first_tokens(gateway: Gateway, requests: int = 100) -> FirstTokens:
    """Send ``requests`` requests one after the other; return the times to their first tokens."""
    return uvloop.run(_measure_first_tokens(gateway, requests))


def measure_held_streams(gateway: Gateway, streams: int, seconds: float = 3) -> HeldStreams:
    """Keep ``streams`` streams of fifty tokens a second open for ``seconds``; return the result."""
    return uvloop.run(_hold_streams(gateway, streams, int(seconds * paced.TOKENS_PER_SECOND)))


class _StreamReader(asyncio.Protocol):
    """Reads streams on one connection.

    Attributes:
        delays: nanoseconds from sending to receipt, for tokens that contain their send time.
        first: the time at which the first token of the current stream arrived, or 0.
    """

    def __init__(self) -> None:
        self.delays: list[int] = []
        self.first = 0.0
        self.done = asyncio.Event()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement Transport without deriving from it.
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        """Send a request, and forget the first token of the previous request."""
        self.first, self._rest = 0.0, b""
        self.done.clear()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        received_at = time.monotonic_ns()
        data = self._rest + data
        end_of_token = 0
        for token in _CONTENT.finditer(data):
            self.delays.append(received_at - int(token[1]))
            end_of_token = token.end()
        if not self.first and (end_of_token or _ANY_CONTENT.search(data)):
            self.first = time.perf_counter()
        if _DONE in data:
            self.done.set()
        self._rest = data[max(end_of_token, len(data) - _OVERLAP) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()


async def _measure_first_tokens(gateway: Gateway, requests: int) -> FirstTokens:
    reader = await _connect(gateway)
    request = _build_request(gateway, {"model": "mock", "stream": True})
    first_token_ms = []
    for _ in range(requests):
        started_at = time.perf_counter()
        reader.send(request)
        async with asyncio.timeout(30):
            await reader.done.wait()
        if not reader.first:
            raise SystemExit(
                f"{gateway.name} ended a stream without a token: send a streamed request by hand"
            )
        first_token_ms.append((reader.first - started_at) * 1000)
    reader.transport.close()
    return FirstTokens(
        p50_ms=statistics.median(first_token_ms), p99_ms=_compute_p99(first_token_ms)
    )


async def _hold_streams(gateway: Gateway, streams: int, tokens: int) -> HeldStreams:
    body = {"model": paced.MODEL, "stream": True, "max_tokens": tokens}
    request = _build_request(gateway, body)
    readers = []
    for _ in range(streams):
        readers.append(await _connect(gateway))
        readers[-1].send(request)
    expected_seconds = tokens / paced.TOKENS_PER_SECOND
    wait_tasks = [asyncio.ensure_future(reader.done.wait()) for reader in readers]
    _, late_tasks = await asyncio.wait(wait_tasks, timeout=expected_seconds * 2 + 5)
    for task in late_tasks:
        task.cancel()
    for reader in readers:
        reader.transport.close()
    delays = [ns / 1e6 for reader in readers for ns in reader.delays] or [float("inf")]
    return HeldStreams(
        streams=streams,
        arrived=sum(len(reader.delays) for reader in readers) / (streams * tokens),
        p50_ms=statistics.median(delays),
        p99_ms=_compute_p99(delays),
    )


async def _connect(gateway: Gateway) -> _StreamReader:
    url = urlsplit(gateway.url)
    assert url.hostname is not None and url.port is not None
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(_StreamReader, url.hostname, url.port)
    return reader


def _build_request(gateway: Gateway, body: Mapping[str, object]) -> bytes:
    url = urlsplit(gateway.url)
    question = {"role": "user", "content": "Say something about foxes."}
    content = json.dumps({**gateway.adapt_body(body), "messages": [question]}).encode()
    headers = {
        "host": url.netloc,
        "content-type": "application/json",
        "content-length": str(len(content)),
        **gateway.headers,
    }
    header_lines = [f"POST {url.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(header_lines).encode() + content


def _compute_p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
