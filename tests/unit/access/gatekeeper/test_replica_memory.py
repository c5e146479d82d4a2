from __future__ import annotations

import pytest

from moyin.access.gatekeeper import replica_memory
from moyin.access.gatekeeper.asgi import Message
from moyin.access.gatekeeper.context import RequestContext
from moyin.access.gatekeeper.replica_memory import BodyMemory, CountedBody, OpenConnections
from moyin.domain.identity import Identity
from moyin.errors import Overloaded

PIECE = 64 * 1024


@pytest.fixture(autouse=True)
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tenant's bodies occupy ten pieces."""
    monkeypatch.setattr(replica_memory, "_TOTAL_BYTES", 20 * PIECE)


def make_context(owner: str | None = "ann") -> RequestContext:
    identity = None if owner is None else Identity(owner=owner, key_id="k")
    return RequestContext(request_id="r", identity=identity)


async def receive_piece() -> Message:
    return {"type": "http.request", "body": bytes(PIECE), "more_body": True}


def start_body(memory: BodyMemory, owner: str = "ann") -> CountedBody:
    return CountedBody(receive_piece, memory, make_context(owner))


async def test_bodies_of_one_tenant_occupy_half_of_the_memory() -> None:
    memory = BodyMemory(max_body_bytes=PIECE)
    first_body, second_body = start_body(memory), start_body(memory)
    for _ in range(5):
        await first_body.receive()
        await second_body.receive()
    assert memory.used_bytes == 10 * PIECE
    with pytest.raises(Overloaded, match="your requests in progress") as exc_info:
        await first_body.receive()
    assert exc_info.value.retry_after == 1
    assert exc_info.value.details == {"max_bytes_in_progress": 10 * PIECE}
    other_body = start_body(memory, "bob")
    for _ in range(10):
        await other_body.receive()
    for body in (first_body, second_body, other_body):
        body.release()
    assert memory.used_bytes == 0
    await start_body(memory).receive()


async def test_small_bodies_are_accepted_while_the_memory_is_full() -> None:
    memory = BodyMemory(max_body_bytes=PIECE)
    for owner in ("ann", "bob"):
        body = start_body(memory, owner)
        for _ in range(10):
            await body.receive()
    cyd_body = start_body(memory, "cyd")
    await cyd_body.receive()
    with pytest.raises(Overloaded, match="too many large requests"):
        await cyd_body.receive()


async def test_a_declared_size_counts_from_the_beginning() -> None:
    memory = BodyMemory(max_body_bytes=PIECE)
    bodies = [CountedBody(receive_piece, memory, make_context(), 4 * PIECE) for _ in range(3)]
    await bodies[0].receive()
    await bodies[1].receive()
    with pytest.raises(Overloaded):
        await bodies[2].receive()
    for _ in range(3):
        await bodies[0].receive()
    assert memory.used_bytes == 8 * PIECE
    bodies[0].release()
    assert memory.used_bytes == 4 * PIECE


async def test_bodies_that_are_not_kept_do_not_count() -> None:
    memory = BodyMemory(max_body_bytes=PIECE)
    context = make_context()
    context.keeps_body = False
    body = CountedBody(receive_piece, memory, context)
    for _ in range(100):
        await body.receive()
    assert memory.used_bytes == 0


async def test_two_of_the_largest_bodies_are_always_accepted() -> None:
    memory = BodyMemory(max_body_bytes=50 * PIECE)
    for body in (start_body(memory), start_body(memory)):
        for _ in range(50):
            await body.receive()


async def test_bodies_without_a_key_share_one_bound() -> None:
    memory = BodyMemory(max_body_bytes=PIECE)
    body = CountedBody(receive_piece, memory, make_context(None))
    for _ in range(10):
        await body.receive()
    with pytest.raises(Overloaded):
        await body.receive()


def test_websockets_of_a_tenant_are_bounded() -> None:
    sockets = OpenConnections("WebSockets open", 2)
    ada, bob = Identity(owner="ada", key_id="k"), Identity(owner="bob", key_id="k")
    with sockets.count(ada), sockets.count(ada):
        with pytest.raises(Overloaded, match="2 WebSockets open"), sockets.count(ada):
            raise AssertionError("a third WebSocket was accepted")
        with sockets.count(bob):
            pass
    with sockets.count(ada):
        pass


def test_strangers_and_services_are_not_counted() -> None:
    requests = OpenConnections("requests in progress", 1)
    service = Identity(owner="ada", key_id="k", service="workers")
    for identity in (None, service):
        with requests.count(identity), requests.count(identity):
            pass
