"""Tests that one account opens all apps of a real farm, and that no log contains its secrets."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.stack import RecordMeasurement, RunningStack

PASSWORD = f"pass-{secrets.token_hex(8)}"


class SecretRecordingClient:
    """A client that remembers every secret that it receives."""

    def __init__(self, stack: RunningStack, session: aiohttp.ClientSession) -> None:
        self.stack = stack
        self.session = session
        self.secrets = {"password": PASSWORD, "operator": stack.api_key}

    async def call(self, method: str, path: str, bearer: str = "", body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        url = f"{self.stack.url}{path}"
        async with self.session.request(method, url, json=body, headers=headers) as response:
            response_body = await response.json(content_type=None) if await response.read() else {}
        for name in ("access_token", "refresh_token", "key"):
            if isinstance(response_body, dict) and name in response_body:
                self.secrets[f"{name} {len(self.secrets)}"] = response_body[name]
        return response.status, response_body


@pytest.fixture
async def client(gateway: RunningStack) -> Any:
    async with aiohttp.ClientSession() as session:
        yield SecretRecordingClient(gateway, session)


async def test_one_identity_opens_every_app_and_no_secret_is_in_any_log(
    client: SecretRecordingClient, record_measurement: RecordMeasurement
) -> None:
    email = f"{secrets.token_hex(6)}@example.com"
    body = {"email": email, "password": PASSWORD}
    status, player = await client.call("POST", "/accounts/register", "", body)
    assert status == 201
    token = player["access_token"]
    assert (await client.call("GET", "/accounts/me", token))[1]["email"] == email
    # Known everywhere, but a player may neither spend nor render.
    for method, path, request_body in (
        ("GET", "/jobs", None),
        ("POST", "/v1/chat/completions", {"model": "auto", "messages": []}),
    ):
        status, response_body = await client.call(method, path, token, request_body)
        assert (status, "insufficient_scope" in str(response_body)) == (403, True), response_body
    assert (await client.call("POST", "/accounts/login", "", {**body, "password": "x"}))[0] == 401
    assert (await client.call("GET", "/jobs", "moyin_00_wrong-secret-wrong-secret"))[0] == 401

    operator = client.stack.api_key
    created_key = (
        await client.call("POST", "/accounts/keys", operator, {"scopes": ["text", "jobs:read"]})
    )[1]
    for path in ("/jobs", "/v1/models", "/accounts/whoami"):
        assert (await client.call("GET", path, created_key["key"]))[0] == 200, path
    assert await _read_close_code(client, created_key["key"]) != "missing_api_key"
    assert await _read_close_code(client, "") == "missing_api_key"
    await client.call("DELETE", f"/accounts/keys/{created_key['id']}", operator)
    revoked_at = time.monotonic()
    for path in ("/jobs", "/v1/models", "/accounts/whoami"):
        while (await client.call("GET", path, created_key["key"]))[0] != 401:
            assert time.monotonic() - revoked_at < 60, path
            await asyncio.sleep(0.1)
    record_measurement(
        f"a revoked key was refused everywhere after {time.monotonic() - revoked_at:.1f} s"
    )

    refresh_body = {"refresh_token": player["refresh_token"]}
    assert (await client.call("POST", "/accounts/refresh", "", refresh_body))[0] == 200
    assert (await client.call("POST", "/accounts/refresh", "", refresh_body))[0] == 401
    # Log lines are written in batches.
    await asyncio.sleep(2)
    file_count, leaks = _search_logs(client.stack, client.secrets)
    assert leaks == []
    assert file_count > 10


async def _read_close_code(client: SecretRecordingClient, key: str) -> str:
    """Open the WebSocket of a job that does not exist, and return the code of the close frame."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{client.stack.url}/jobs/none/ws"
    async with client.session.ws_connect(url, headers=headers) as socket:
        message = await socket.receive(10)
        assert message.type is aiohttp.WSMsgType.CLOSE
        return (message.extra or "").partition(":")[0]


def _search_logs(stack: RunningStack, secrets_by_name: dict[str, str]) -> tuple[int, list[str]]:
    """Return the number of log files, and which secret was found in which file."""
    files = [
        path
        for folder in (stack.layout.logs, stack.layout.ray_logs)
        for path in Path(folder).resolve().rglob("*")
        if path.is_file()
    ]
    leaks = [
        f"{name} in {path.name}"
        for path in files
        for name, secret in secrets_by_name.items()
        if secret.encode() in path.read_bytes()
    ]
    return len(files), leaks


def _build_get_request(path: str, *headers: str) -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: moyin", *headers, "", ""))


def _build_login_request(body: str, *headers: str) -> str:
    request_lines = (
        "POST /accounts/login HTTP/1.1",
        "Host: moyin",
        "Content-Type: application/json",
    )
    return "\r\n".join((*request_lines, *headers, "", body))


AMBIGUOUS = {
    "two lengths": _build_login_request("{}", "Content-Length: 2", "Content-Length: 40"),
    "a list of lengths": _build_login_request("{}", "Content-Length: 2, 40"),
    "a negative length": _build_login_request("{}", "Content-Length: -2"),
    "an unknown coding": _build_login_request(
        "0\r\n\r\n", "Transfer-Encoding: xchunked", "Content-Length: 5"
    ),
    "a space before the colon": _build_login_request("{}", "Content-Length : 2"),
    "a NUL in a header": _build_get_request("/accounts/whoami", "x-api-key: a\0b"),
    "a folded header": _build_get_request("/accounts/whoami", "x-api-key: a", " b"),
    "no host": "GET /accounts/whoami HTTP/1.1\r\n\r\n",
    "a head without end": _build_get_request("/accounts/whoami", f"x-api-key: {'a' * 100_000}"),
    "a target without end": _build_get_request(f"/accounts/whoami?a={'a' * 100_000}"),
    "a line feed in the path": _build_get_request("/accounts/whoami\nx-api-key: a"),
}
DISGUISED = [
    "/accounts/healthz/../keys",
    "/accounts/%2e%2e/jobs",
    "/accounts/login/%2e%2e/keys",
    "//accounts/keys",
    "/accounts//keys",
    "/accounts/keys/",
    "/accounts/keys;healthz",
    "/accounts/keys%00/healthz",
    "/ACCOUNTS/keys",
]


@pytest.mark.parametrize("raw_request", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_ambiguous_requests_are_refused(gateway: RunningStack, raw_request: str) -> None:
    response = await _send_raw(gateway, raw_request)
    # Either one refusal or a closed connection: no app may accept such a request.
    assert response == b"" or response.split(b" ")[1] in (b"400", b"401", b"501"), response
    assert response.count(b"HTTP/1.1 ") <= 1


@pytest.mark.parametrize("path", DISGUISED)
async def test_no_spelling_of_a_path_gets_around_the_key(gateway: RunningStack, path: str) -> None:
    response = await _send_raw(gateway, _build_get_request(path, "Connection: close"))
    assert response.split(b" ")[1] in (b"400", b"401", b"404"), response


async def test_identity_headers_from_clients_are_ignored(client: SecretRecordingClient) -> None:
    claimed_headers = {
        "x-moyin-owner": "victim",
        "x-moyin-identity": "e30.e30.",
        "x-forwarded-user": "victim",
        "authorization": f"Bearer {client.stack.api_key}",
    }
    url = f"{client.stack.url}/accounts/whoami"
    async with client.session.get(url, headers=claimed_headers) as response:
        assert (await response.json())["owner"] == "admin"


async def _send_raw(gateway: RunningStack, raw_request: str) -> bytes:
    """Send a request to HAProxy; return the bytes of the response that arrive within a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports.door)
    writer.write(raw_request.encode("latin-1"))
    response = b""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(1):
            while chunk := await reader.read(65536):
                response += chunk
                if b"\r\n\r\n" in response:
                    break
    writer.close()
    return response
