"""Bounds what requests and WebSockets of one tenant, and large bodies of all, occupy in a replica.

A replica that uses too much memory is ended, with the requests of every tenant. Without these
bounds, a few dozen requests of one tenant would suffice for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from moyin.access.gatekeeper.asgi import Message, Receive
from moyin.access.gatekeeper.context import RequestContext
from moyin.domain.identity import Identity
from moyin.errors import Overloaded

# A body is parsed and encoded again, so a replica needs several times its size. The default limit
# on the memory of a replica is 2 GiB.
_TOTAL_BYTES = 320 * 1024 * 1024
# Bodies of at most this size are always accepted, also while large ones occupy all of the memory.
_UNCOUNTED_BYTES = 64 * 1024
# The most requests, and the most WebSockets, of a tenant in a replica. Each WebSocket may hold an
# unfinished message; `ReplicaServer` bounds its size.
MAX_IN_PROGRESS = 1_024


@dataclass(slots=True)
class BodyMemory:
    """Counts the bytes of the large bodies in one replica, by tenant.

    A tenant may use half of the memory.

    Args:
        max_body_bytes: the maximum size of one body; a tenant may always send two at a time.
    """

    max_body_bytes: int
    _used: Counter[str] = field(default_factory=Counter)

    @property
    def used_bytes(self) -> int:
        """The size of all counted bodies in bytes."""
        return self._used.total()

    def add(self, owner: str, size: int) -> None:
        """Count ``size`` more bytes of a tenant's bodies.

        Raises:
            Overloaded: the tenant's bodies, or those of all tenants, would be too large together.
        """
        tenant_limit = max(_TOTAL_BYTES // 2, 2 * self.max_body_bytes)
        if self._used[owner] + size > tenant_limit:
            raise Overloaded(
                f"your requests in progress have more than {tenant_limit} bytes together: send "
                "fewer large requests at a time",
                retry_after=1,
                details={"max_bytes_in_progress": tenant_limit},
            )
        if self.used_bytes + size > 2 * tenant_limit:
            raise Overloaded("too many large requests are in progress; try again", retry_after=1)
        self._used[owner] += size

    def remove(self, owner: str, size: int) -> None:
        """Remove ``size`` bytes that `add` has counted."""
        self._used[owner] -= size
        if not self._used[owner]:
            del self._used[owner]


class CountedBody:
    """Counts the body of one request until `release`, unless its handler does not keep it.

    A declared size counts as soon as the body begins. Otherwise bodies that arrive at the same time
    would all be refused midway, although some of them fit.

    Args:
        receive: the ASGI ``receive`` that returns the decoded body.
        declared_bytes: the value of Content-Length; 0 without the header, or if the body is encoded.
    """

    def __init__(
        self, receive: Receive, memory: BodyMemory, context: RequestContext, declared_bytes: int = 0
    ) -> None:
        self._receive = receive
        self._memory = memory
        self._context = context
        self._owner = "" if context.identity is None else context.identity.owner
        self._declared_bytes = declared_bytes
        self._received_bytes = 0
        self._counted_bytes = 0

    async def receive(self) -> Message:
        """Return the next ASGI message; raise `Overloaded` if the memory for bodies is used up."""
        message = await self._receive()
        if message["type"] == "http.request" and self._context.keeps_body:
            self._received_bytes += len(message.get("body", b""))
            size = max(self._received_bytes, self._declared_bytes)
            if size > _UNCOUNTED_BYTES and size > self._counted_bytes:
                self._memory.add(self._owner, size - self._counted_bytes)
                self._counted_bytes = size
        return message

    def release(self) -> None:
        """Stop counting the body; call this when the request has ended."""
        if self._counted_bytes:
            self._memory.remove(self._owner, self._counted_bytes)
            self._counted_bytes = 0


class OpenConnections:
    """Counts the requests in progress, or the open WebSockets, in one replica by tenant.

    Args:
        noun: what is counted, for the error message.
        limit: the most that a tenant may have.
    """

    def __init__(self, noun: str, limit: int) -> None:
        self._noun = noun
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def count(self, identity: Identity | None) -> Iterator[None]:
        """Count one during the block; raise `Overloaded` if its tenant has too many.

        Requests without a key are not counted, because they would all share one bound: a stranger
        could keep others from signing in. Moyin's services act for tenants in bounded numbers.
        """
        if identity is None or identity.service is not None:
            yield
            return
        owner = identity.owner
        if self._open[owner] >= self._limit:
            raise Overloaded(
                f"you have {self._limit} {self._noun} at a time: wait until some have ended",
                retry_after=5,
                details={"max_in_progress": self._limit},
            )
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
