from __future__ import annotations

import gzip
import json
import os
import tracemalloc
import zlib
from typing import Any

import pytest

from moyin.access.gatekeeper import render_problem_details
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.content_encoding import decode_body
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import NoObserver
from moyin.domain.identity import Identity
from moyin.errors import BodyTooLarge, InvalidContentEncoding
from moyin.testing.fakes import StaticAuthenticator

LIMIT = 1_000_000
TEXT = b'{"text": "' + b"\xe5\xa5\xbd" * 50_000 + b'"}'


class EncodingClient:
    """Sends bodies through a gatekeeper to an app that records what it reads."""

    def __init__(self) -> None:
        self.body = b""
        self.headers: dict[bytes, bytes] = {}
        self.messages = 0
        self.unread_messages: list[Any] = []
        self.app = Gatekeeper(
            self._read,
            service="echo",
            authenticator=StaticAuthenticator({"good": Identity(owner="ada", key_id="k1")}),
            error_renderer=render_problem_details,
            max_body_bytes=LIMIT,
            observer=NoObserver(),
            keeps_encoding=lambda scope: scope["path"] == "/forwarded",
        )

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = dict(scope["headers"])
        has_more = True
        while has_more:
            message = await receive()
            self.messages += 1
            self.body += message["body"]
            has_more = message["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(
        self, encoding: str, body: bytes, *, piece_bytes: int = 65_536, path: str = "/"
    ) -> tuple[int, dict[bytes, bytes], Any]:
        """Send ``body`` in pieces of ``piece_bytes`` bytes.

        Returns the response's status, headers and body.
        """
        headers = [
            (b"authorization", b"Bearer good"),
            (b"content-length", b"%d" % len(body)),
            (b"content-encoding", encoding.encode()),
        ]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        offsets = range(0, len(body), piece_bytes) or range(1)
        self.unread_messages = [
            {
                "type": "http.request",
                "body": body[offset : offset + piece_bytes],
                "more_body": offset + piece_bytes < len(body),
            }
            for offset in offsets
        ]
        messages: list[Any] = []

        async def receive() -> Any:
            return (
                self.unread_messages.pop(0) if self.unread_messages else {"type": "http.disconnect"}
            )

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        return messages[0]["status"], dict(messages[0]["headers"]), json.loads(messages[1]["body"])


async def read_whole_body(receive: Receive) -> bytes:
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body, has_more = body + message["body"], message["more_body"]
    return body


@pytest.fixture
def client() -> EncodingClient:
    return EncodingClient()


@pytest.mark.parametrize("piece_bytes", [1, 1000, 65_536])
@pytest.mark.parametrize(
    ("encoding", "encoded_body"),
    [
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("x-gzip", gzip.compress(TEXT, mtime=0)),
        ("GZip ", gzip.compress(TEXT, mtime=0)),
        # Several members, as parallel compressors write them; some are empty.
        ("gzip", b"".join(gzip.compress(p, mtime=0) for p in (b"", TEXT[:7], b"", TEXT[7:], b""))),
        ("deflate", zlib.compress(TEXT)),
        ("identity", TEXT[:2000]),
        ("", TEXT[:2000]),
    ],
)
async def test_bodies_are_decoded(
    client: EncodingClient, encoding: str, encoded_body: bytes, piece_bytes: int
) -> None:
    status, _, _ = await client.send(encoding, encoded_body, piece_bytes=piece_bytes)
    assert status == 200
    assert client.body == (TEXT if encoding.strip() not in ("identity", "") else encoded_body)


async def test_apps_do_not_see_the_headers_of_the_encoded_body(client: EncodingClient) -> None:
    await client.send("gzip", gzip.compress(b"x", mtime=0))
    assert client.headers == {b"authorization": b"Bearer good"}


async def test_bodies_that_hardly_shrink_are_decoded(client: EncodingClient) -> None:
    body = os.urandom(LIMIT - 1000)
    assert (await client.send("gzip", gzip.compress(body, mtime=0)))[0] == 200
    assert client.body == body


@pytest.mark.parametrize("size", [256 * 1024, 512 * 1024, LIMIT])
async def test_a_decoded_body_of_whole_pieces_is_read_to_its_end(
    client: EncodingClient, size: int
) -> None:
    assert (await client.send("gzip", gzip.compress(b"x" * size, mtime=0)))[0] == 200
    assert client.body == b"x" * size


async def test_an_empty_body_is_accepted_in_any_encoding(client: EncodingClient) -> None:
    assert (await client.send("gzip", b""))[0] == 200
    assert (await client.send("br", b""))[0] == 200
    assert client.body == b""


async def test_a_decoded_body_over_the_limit_is_refused(client: EncodingClient) -> None:
    status, _, problem = await client.send("gzip", gzip.compress(b"x" * (LIMIT + 1)))
    assert (status, problem["code"]) == (413, "body_too_large")
    assert problem["max_body_bytes"] == LIMIT


async def test_the_number_of_gzip_members_is_limited(client: EncodingClient) -> None:
    member = gzip.compress(b"", mtime=0)
    assert (await client.send("gzip", member * 4096))[0] == 200
    status, _, problem = await EncodingClient().send("gzip", member * 4097)
    assert (status, problem["code"]) == (400, "invalid_content_encoding")
    assert "more than 4096 gzip members" in problem["detail"]


async def test_a_larger_body_limit_allows_more_gzip_members() -> None:
    """The allowed number of gzip members grows with the size limit: bgzip writes one per 64 KiB."""
    member, limit = gzip.compress(b"x", mtime=0), 5_000 * 32 * 1024
    scope = {"headers": [(b"transfer-encoding", b"chunked")]}
    for member_count in (5_000, 5_001):
        messages = [{"type": "http.request", "body": member * member_count, "more_body": False}]

        async def receive(messages: list[Any] = messages) -> Any:
            return messages.pop()

        _, receive_decoded = decode_body(scope, receive, limit, [b"gzip"])
        if member_count > 5_000:
            with pytest.raises(InvalidContentEncoding, match="more than 5000 gzip members"):
                await read_whole_body(receive_decoded)
        else:
            assert await read_whole_body(receive_decoded) == b"x" * member_count


async def test_gzip_members_that_together_exceed_the_limit_are_refused(
    client: EncodingClient,
) -> None:
    member = gzip.compress(b"x" * (LIMIT // 4), mtime=0)
    assert (await client.send("gzip", member * 4))[0] == 200
    status, _, problem = await EncodingClient().send("gzip", member * 5)
    assert (status, problem["code"]) == (413, "body_too_large")


async def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    messages = [{"type": "http.request", "body": bomb, "more_body": False}]
    piece_count = 0

    async def receive() -> Any:
        return messages.pop()

    scope = {"headers": [(b"content-length", b"%d" % len(bomb))]}
    _, receive_decoded = decode_body(scope, receive, LIMIT, [b"deflate"])
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            while True:
                piece_count += bool((await receive_decoded())["body"])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert piece_count == LIMIT // (256 * 1024)
    assert peak_bytes < 2 * LIMIT


@pytest.mark.parametrize(
    ("encoding", "body", "expected_detail"),
    [
        ("gzip", TEXT, "not match this encoding"),
        ("gzip", zlib.compress(TEXT), "not match this encoding"),
        ("deflate", gzip.compress(TEXT, mtime=0), "not match this encoding"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-1], "ends too early"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:5], "ends too early"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-8] + bytes(8), "not match this encoding"),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"xyz", "not match this encoding"),
        ("gzip", gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0)[:-1], "too early"),
        ("deflate", zlib.compress(b"a") + zlib.compress(b"b"), "after the end"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 65_536])
async def test_broken_bodies_are_refused(
    client: EncodingClient, encoding: str, body: bytes, expected_detail: str, piece_bytes: int
) -> None:
    status, _, problem = await client.send(encoding, body, piece_bytes=piece_bytes)
    assert (status, problem["code"]) == (400, "invalid_content_encoding")
    assert problem["field"] == "Content-Encoding"
    assert expected_detail in problem["detail"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "identity, gzip"])
async def test_unsupported_encodings_are_refused(client: EncodingClient, encoding: str) -> None:
    status, headers, problem = await client.send(encoding, b"x")
    assert (status, problem["code"]) == (415, "unsupported_content_encoding")
    assert (problem["field"], problem["accepted"]) == (
        "Content-Encoding",
        ["gzip", "deflate"],
    )
    assert headers[b"accept-encoding"] == b"gzip, deflate"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_forwarded_requests_keep_their_encoding(
    client: EncodingClient, encoding: str
) -> None:
    assert (await client.send(encoding, b"as it is", path="/forwarded"))[0] == 200
    assert client.body == b"as it is"
    assert client.headers[b"content-encoding"] == encoding.encode()
