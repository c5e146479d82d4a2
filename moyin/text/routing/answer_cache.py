"""Answers repeated requests from stored answers instead of calling a model again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from moyin.domain.money import Usage
from moyin.store.response_cache import CachedResponse
from moyin.text.routing.answer import Answer, Stream
from moyin.text.routing.catalog import Caching
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.ledger import usage_entry
from moyin.text.routing.routed_call import RoutedCall

__all__ = ["AnswerCache", "ResponseCache"]

_log = logging.getLogger(__name__)
# The name of the cache in the ledger, in the place of a back end.
_BACKEND = "cache"
_HIT = (b"x-moyin-cache", b"hit")
_MISS = (b"x-moyin-cache", b"miss")
# Limit on concurrent writes; further answers are not stored.
_MAX_WRITES = 64


class ResponseCache(Protocol):
    """Stores responses. It never raises because of an outage, and never takes long."""

    async def get(self, owner: str, digest: str) -> CachedResponse | None: ...

    async def put(
        self, owner: str, digest: str, response: CachedResponse, *, ttl: int, entries: int
    ) -> None: ...


class AnswerCache:
    """Serves stored answers where possible, and stores new ones."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache
        self._writes: set[asyncio.Task[None]] = set()

    async def answer(
        self,
        call: RoutedCall,
        route: CompiledRoute,
        caching: Caching,
        call_model: Callable[[], Awaitable[Answer]],
    ) -> Answer:
        """Return the stored answer of an equal call, or call a model and store its answer."""
        owner, digest = call.context.owner, request_digest(call, route)
        cached = await self._cache.get(owner, digest)
        if cached is not None:
            return _cached_answer(call, cached)
        answer = await call_model()

        def store(body: bytes, usage: Usage) -> None:
            if len(body) <= caching.max_bytes and len(self._writes) < _MAX_WRITES:
                response = _stored_response(answer, body, usage)
                self._write(
                    self._cache.put(
                        owner, digest, response, ttl=caching.ttl, entries=caching.max_entries
                    )
                )

        headers = (*answer.headers, _MISS)
        if answer.stream is not None:
            recorded = _RecordingStream(answer.stream, caching.max_bytes, store)
            return Answer(headers=headers, stream=recorded, usage=answer.usage)
        store(answer.body, answer.usage)
        return Answer(headers=headers, body=answer.body, usage=answer.usage)

    def _write(self, write: Awaitable[None]) -> None:
        call = asyncio.ensure_future(write)
        self._writes.add(call)
        call.add_done_callback(self._on_written)

    def _on_written(self, call: asyncio.Task[None]) -> None:
        self._writes.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            _log.error("an answer could not be stored in the cache", exc_info=error)


class _RecordingStream:
    """Passes on a stream and stores its pieces once it is complete."""

    def __init__(self, stream: Stream, largest: int, store: Callable[[bytes, Usage], None]) -> None:
        self._stream = stream
        self._bytes_left = largest
        self._keep = store
        self._pieces: list[bytes] = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._stream)
        if self._bytes_left < 0:
            return piece
        stream = self._stream
        if stream.final_usage is not None:
            # The last piece states the cost, which differs for a cached answer.
            self._keep(b"".join(self._pieces), stream.final_usage)
            self._bytes_left = -1
        else:
            self._pieces.append(piece)
            self._bytes_left -= len(piece)
            if self._bytes_left < 0:
                self._pieces.clear()
        return piece

    @property
    def final_usage(self) -> Usage | None:
        return self._stream.final_usage

    async def aclose(self) -> None:
        await self._stream.aclose()


def request_digest(call: RoutedCall, route: CompiledRoute) -> str:
    """Return a hash of everything that may change the answer.

    That is: the tenant, the protocol, the request, and the deployments that may answer.
    """
    request, codec = call.request, call.codec
    parts: list[Any] = [
        call.context.owner,
        codec.api_format.value,
        codec.path,
        request.streams,
        dict(request.data),
        codec.forwarded_headers(call.context.headers),
        [
            [target.deployment.backend, target.model.name, target.model.upstream]
            for target in route.targets
        ],
    ]
    if call.quality is not None:
        # A stored answer of a weak model must not reach a client that demands better ones.
        parts.append([call.quality.floor, call.quality.usd_per_bad_answer])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cached_answer(call: RoutedCall, cached: CachedResponse) -> Answer:
    call.accounting.ledger.record(
        usage_entry(
            request_id=call.context.request_id,
            owner=call.context.owner,
            backend=_BACKEND,
            model=cached.model,
            usage=cached.usage,
            pico=0,
            complete=True,
        )
    )
    note = call.codec.cost_trailer(b"0") if call.request.streams else b""
    return Answer(
        headers=(
            (b"content-type", cached.content_type.encode()),
            (b"x-moyin-backend", cached.backend.encode()),
            (b"x-moyin-model", cached.model.encode()),
            (b"x-moyin-route", b"cache"),
            (b"x-moyin-cost-usd", b"0"),
            _HIT,
        ),
        body=cached.body + note,
        usage=cached.usage,
    )


def _stored_response(answer: Answer, body: bytes, usage: Usage) -> CachedResponse:
    headers = {name: value.decode() for name, value in answer.headers}
    return CachedResponse(
        backend=headers[b"x-moyin-backend"],
        model=headers[b"x-moyin-model"],
        content_type=headers[b"content-type"],
        body=body,
        usage=usage,
    )
