"""Answers repeated requests from a cache of earlier answers instead of calling a model again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from moyin.domain.money import Usage
from moyin.store.response_cache import CachedResponse
from moyin.text.routing.answer import Answer, AnswerStream
from moyin.text.routing.catalog import CachingPolicy
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.ledger import build_usage_entry
from moyin.text.routing.omission import describe_omission
from moyin.text.routing.routed_call import RoutedCall

_log = logging.getLogger(__name__)
# The ledger names the cache where other entries name the back end.
_LEDGER_BACKEND = "cache"
_CACHE_HIT = (b"x-moyin-cache", b"hit")
_CACHE_MISS = (b"x-moyin-cache", b"miss")
# Maximum number of concurrent writes; answers beyond it are not stored.
_MAX_WRITES = 64


class CachedResponses(Protocol):
    """Storage of cached responses by tenant and digest of the request.

    Responses expire after ``ttl`` seconds, or if the tenant has more than ``entries`` newer ones. An
    outage of the storage never causes an error: `get` returns None, and `put` does nothing.
    """

    async def get(self, owner: str, digest: str) -> CachedResponse | None: ...

    async def put(
        self,
        owner: str,
        digest: str,
        response: CachedResponse,
        *,
        ttl_seconds: int,
        max_entries: int,
    ) -> None: ...


class AnswerCache:
    """Cache of models' answers, used for the aliases that enable caching."""

    def __init__(self, cache: CachedResponses) -> None:
        self._cache = cache
        self._writes: set[asyncio.Task[None]] = set()

    async def get_or_call(
        self,
        call: RoutedCall,
        route: CompiledRoute,
        caching: CachingPolicy,
        call_model: Callable[[], Awaitable[Answer]],
    ) -> Answer:
        """Return the cached answer to an equal request, or call a model and store its answer."""
        owner, digest = call.context.owner, hash_request(call, route)
        cached_response = await self._cache.get(owner, digest)
        if cached_response is not None:
            return _serve_cached(call, cached_response)
        answer = await call_model()

        def store(body: bytes, usage: Usage) -> None:
            if len(body) <= caching.max_bytes and len(self._writes) < _MAX_WRITES:
                response = _to_cached_response(answer, body, usage)
                self._start_write(
                    self._cache.put(
                        owner,
                        digest,
                        response,
                        ttl_seconds=caching.ttl,
                        max_entries=caching.max_entries,
                    )
                )

        headers = (*answer.headers, _CACHE_MISS)
        if answer.stream is not None:
            recording_stream = _RecordingStream(answer.stream, caching.max_bytes, store)
            return Answer(headers=headers, stream=recording_stream, usage=answer.usage)
        store(answer.body, answer.usage)
        return Answer(headers=headers, body=answer.body, usage=answer.usage)

    def _start_write(self, write: Awaitable[None]) -> None:
        write_task = asyncio.ensure_future(write)
        self._writes.add(write_task)
        write_task.add_done_callback(self._on_write_done)

    def _on_write_done(self, write_task: asyncio.Task[None]) -> None:
        self._writes.discard(write_task)
        if not write_task.cancelled() and (error := write_task.exception()) is not None:
            _log.error("an answer could not be stored in the answer cache", exc_info=error)


@dataclass(eq=False, slots=True)
class _RecordingStream:
    """Stream that forwards another stream and stores its bytes when it is complete."""

    stream: AnswerStream
    bytes_left: int
    store: Callable[[bytes, Usage], None]
    _pieces: list[bytes] = field(default_factory=list)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self.stream)
        if self.bytes_left < 0:
            return piece
        if self.stream.final_usage is not None:
            # The last piece is not stored: it states the cost, which is 0 for a cached answer.
            self.store(b"".join(self._pieces), self.stream.final_usage)
            self.bytes_left = -1
        else:
            self._pieces.append(piece)
            self.bytes_left -= len(piece)
            if self.bytes_left < 0:
                self._pieces.clear()
        return piece

    @property
    def final_usage(self) -> Usage | None:
        return self.stream.final_usage

    async def aclose(self) -> None:
        await self.stream.aclose()


def hash_request(call: RoutedCall, route: CompiledRoute) -> str:
    """Return a hash of all that determines the answer to a request.

    These are the tenant, the protocol, the request, the deployments that may answer, and the
    demanded quality.
    """
    request, codec = call.request, call.codec
    key_parts: list[Any] = [
        call.context.owner,
        codec.api_format.value,
        codec.path,
        request.is_streamed,
        dict(request.data),
        codec.select_forwarded_headers(call.context.headers),
        [
            [target.deployment.backend, target.model.name, target.model.upstream]
            for target in route.targets
        ],
    ]
    if call.quality is not None:
        # A cached answer of a weak model must not be served to a client that demands a better one.
        key_parts.append([call.quality.floor, call.quality.usd_per_bad_answer])
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()


def _serve_cached(call: RoutedCall, cached_response: CachedResponse) -> Answer:
    entry = build_usage_entry(
        call.context,
        call.request.model,
        _LEDGER_BACKEND,
        cached_response.model,
        cached_response.usage,
        pico_cost=0,
    )
    call.record(entry)
    trailer = call.codec.encode_cost_trailer(b"0") if call.request.is_streamed else b""
    return Answer(
        headers=(
            (b"content-type", cached_response.content_type.encode()),
            (b"x-moyin-backend", cached_response.backend.encode()),
            (b"x-moyin-model", cached_response.model.encode()),
            (b"x-moyin-route", describe_omission("cache", call.omitted).encode()),
            (b"x-moyin-cost-usd", b"0"),
            _CACHE_HIT,
        ),
        body=cached_response.body + trailer,
        usage=cached_response.usage,
    )


def _to_cached_response(answer: Answer, body: bytes, usage: Usage) -> CachedResponse:
    headers = {name: value.decode() for name, value in answer.headers}
    return CachedResponse(
        backend=headers[b"x-moyin-backend"],
        model=headers[b"x-moyin-model"],
        content_type=headers[b"content-type"],
        body=body,
        usage=usage,
    )
