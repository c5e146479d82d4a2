"""Sends secrets to a whole farm in every possible way, and searches all its logs for them."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import pytest
from aiohttp import web

from moyin.access.gatekeeper.identity import create_service_token
from moyin.access.gatekeeper.tokens import create_event_token, create_file_link
from moyin.domain.identity import Identity
from moyin.jobs.grpc import moyin_pb2 as pb
from moyin.jobs.grpc.moyin_pb2_grpc import MoyinStub
from moyin.proxy.identity import derive_route_secret
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.integration.servers import free_port
from tests.stack import RecordMeasurement, RunningStack
from tests.waiting import eventually


class SentSecrets:
    """Records each secret by the place where it was sent; of keys and tokens, only the secret part."""

    def __init__(self, gateway: RunningStack) -> None:
        self.gateway = gateway
        self.secret_parts: dict[str, str] = {}

    def record(self, description: str, secret: str) -> str:
        if secret.count(".") == 2:
            secret_part = secret.rsplit(".", 1)[1]
        else:
            secret_part = secret.split("_", 2 if secret.startswith("moyin_") else 1)[-1]
        assert len(secret_part) >= 12, description
        self.secret_parts[description] = secret_part
        return secret

    def generate(self, description: str) -> str:
        return self.record(description, secrets.token_hex(20))


class SecretSendingClient:
    """A client of the farm that records every secret which it sends."""

    def __init__(
        self, sent_secrets: SentSecrets, session: aiohttp.ClientSession, keys: KeyStore
    ) -> None:
        self.sent_secrets = sent_secrets
        self.session = session
        self.keys = keys

    async def create_key(self, description: str) -> str:
        """Create a key, and record it as a secret that is sent in the place ``description``."""
        return self.sent_secrets.record(
            description, (await self.keys.create("admin", description))[1]
        )

    async def call(self, method: str, path: str, *statuses: int, **kwargs: Any) -> Any:
        async with self.session.request(method, path, allow_redirects=False, **kwargs) as response:
            text = await response.text()
            assert response.status in (statuses or (200,)), (method, path, response.status, text)
            return json.loads(text) if text[:1] in ("{", "[") else text


@pytest.fixture
def haproxy_log(gateway: RunningStack) -> Iterator[socket.socket]:
    """Yield a socket that receives the log messages which HAProxy sends to syslog."""
    port = int(gateway.env["RAY_SERVE_HAPROXY_LOG_TARGET"].rpartition(":")[2])
    with socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        receiver.bind(("127.0.0.1", port))
        receiver.setblocking(False)
        yield receiver


@pytest.fixture
async def client(gateway: RunningStack) -> AsyncIterator[SecretSendingClient]:
    database = Database(gateway.settings.sql_url)
    cookie_jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(gateway.url, cookie_jar=cookie_jar) as session:
        yield SecretSendingClient(SentSecrets(gateway), session, KeyStore(database))
    await database.close()


async def test_no_log_holds_a_secret(
    gateway: RunningStack,
    client: SecretSendingClient,
    haproxy_log: socket.socket,
    record_measurement: RecordMeasurement,
) -> None:
    signing_key = gateway.settings.signing_key()
    for description, secret in {
        "the operator's key": gateway.api_key,
        "Claude's key": gateway.env["ANTHROPIC_API_KEY"],
        "RabbitMQ's password": urlsplit(gateway.env["STUDIO_RABBITMQ_URL"]).password or "",
        "the stack's secret": signing_key.decode(),
        "an upstream's secret": derive_route_secret(signing_key, "ollama"),
        "Valkey's password": gateway.valkey_password,
        "Ray's token": gateway.layout.ray_token.read_text().strip(),
    }.items():
        client.sent_secrets.record(description, secret)
    for send_secrets in (
        _send_keys,
        _send_cookies,
        _send_by_sockets,
        _send_tokens,
        _send_passwords,
        _send_links,
        _submit_secrets,
        _send_by_grpc,
    ):
        await send_secrets(client)
    marker = secrets.token_hex(12)
    bearer_headers = {"authorization": f"Bearer {gateway.api_key}"}
    for path in (f"/jobs/{marker}", f"/accounts/users/{marker}", f"/v1/models/{marker}"):
        await client.call("GET", path, 404, headers=bearer_headers)
    # Lines are written in batches, by every app on its own.
    await eventually(lambda: _read_logs(gateway).count(marker.encode()) >= 3, 180)
    log_bytes, syslog_bytes = _read_logs(gateway), _read_datagrams(haproxy_log)
    assert log_bytes.count(marker.encode()) >= 3, "the access log"
    for app in ("gateway", "accounts", "models"):
        assert marker in gateway.layout.list_app_logs(app)[-1].read_text(), app
    assert syslog_bytes.count(b"GET") > 20, (len(syslog_bytes), syslog_bytes[:500])
    leaks = [
        description
        for description, secret_part in client.sent_secrets.secret_parts.items()
        if secret_part.encode() in log_bytes or secret_part.encode() in syslog_bytes
    ]
    assert leaks == []
    record_measurement(
        f"{len(client.sent_secrets.secret_parts)} secrets are in none of {len(log_bytes):,} bytes of logs"
    )


async def _send_keys(client: SecretSendingClient) -> None:
    call, create_key, sent_secrets = client.call, client.create_key, client.sent_secrets
    for path in ("/jobs", "/v1/models", "/accounts/whoami"):
        bearer = await create_key(f"header of {path}")
        await call("GET", path, headers={"authorization": f"Bearer {bearer}"})
        await call("GET", path, headers={"x-api-key": await create_key(f"x-api-key of {path}")})
        wrong_key = f"moyin_00aa11bb_{sent_secrets.generate(f'wrong key for {path}')}"
        await call("GET", path, 401, headers={"x-api-key": wrong_key})
        basic_headers = {"authorization": f"Basic {sent_secrets.generate(f'basic for {path}')}"}
        await call("GET", path, 401, headers=basic_headers)
        # A key in the query of these paths is refused, although it is valid.
        for name in ("api_key", "key", "token"):
            await call("GET", f"{path}?{name}={await create_key(f'{name} at {path}')}", 401)
    for path in ("/queue", "/api/queue", "/comfy/api/queue"):
        await call("GET", f"{path}?a=1&api_key={await create_key(f'api_key at {path}')}")
        for name in ("api_key", "key", "token"):
            wrong_key = sent_secrets.generate(f"wrong {name} at {path}")
            await call("GET", f"{path}?{name}={wrong_key}", 401)
    bearer = await create_key("header of a path with a key")
    request_headers = {"authorization": f"Bearer {bearer}"}
    await call("GET", f"/jobs/{await create_key('path')}", 404, headers=request_headers)


async def _send_cookies(client: SecretSendingClient) -> None:
    form_key, json_key = (
        await client.create_key("form"),
        await client.create_key("JSON of a sign-in"),
    )
    await client.call("POST", "/comfy/session", 303, data={"key": form_key})
    await client.call("POST", "/comfy/session", json={"key": json_key})
    wrong_key = client.sent_secrets.generate("wrong key in a form")
    await client.call("POST", "/comfy/session", 401, data={"key": wrong_key})
    cookie_headers = {"cookie": f"moyin_session={await client.create_key('cookie')}"}
    await client.call("GET", "/comfy/api/queue", headers=cookie_headers)
    await client.call("GET", "/comfy/session", headers=cookie_headers)
    await client.call("POST", "/comfy/api/free", 403, headers=cookie_headers, json={})
    await client.call("GET", "/jobs", headers=cookie_headers)
    await client.call("POST", "/jobs/cancel", 403, headers=cookie_headers, json={})


async def _send_by_sockets(client: SecretSendingClient) -> None:
    good_key, wrong_key = (
        await client.create_key("socket of a job"),
        client.sent_secrets.generate("wrong key of a socket"),
    )
    paths = [
        f"/jobs/none/ws?api_key={good_key}",
        f"/jobs/none/ws?api_key={wrong_key}",
        f"/jobs/none/ws?token={client.sent_secrets.generate('wrong event token of a socket')}",
        f"/ws?clientId=x&api_key={await client.create_key('ComfyUIs socket')}",
        f"/comfy/ws?api_key={await client.create_key('the pages socket')}",
    ]
    for path in paths:
        async with client.session.ws_connect(path) as socket:
            await socket.receive(20)


async def _send_tokens(client: SecretSendingClient) -> None:
    call, sent_secrets = client.call, client.sent_secrets
    registration = {
        "email": f"{secrets.token_hex(8)}@example.com",
        "password": sent_secrets.generate("password"),
    }
    player = await call("POST", "/accounts/register", 201, json=registration)
    for turn in range(2):
        access_token = sent_secrets.record(f"access token {turn}", player["access_token"])
        refresh_token = sent_secrets.record(f"refresh token {turn}", player["refresh_token"])
        await call("GET", "/accounts/me", headers={"authorization": f"Bearer {access_token}"})
        await call("GET", f"/api/queue?api_key={access_token}", 403)
        creator = Identity(owner="studio", key_id="nobody")
        signed_token = create_event_token(
            sent_secrets.gateway.settings.signing_key(), creator, "none", 300
        )
        token = sent_secrets.record(f"event token {turn}", signed_token)
        await call("GET", f"/jobs/none/events?token={token}", 401)
        await call("POST", "/comfy/session", json={"key": access_token})
        await call("GET", "/comfy/session", headers={"cookie": f"moyin_session={access_token}"})
        forged_token = sent_secrets.record(
            f"forged token {turn}", f"{access_token[:-43]}{secrets.token_hex(16)}abc"
        )
        await call("GET", "/jobs", 401, headers={"authorization": f"Bearer {forged_token}"})
        if turn == 0:
            player = await call("POST", "/accounts/refresh", json={"refresh_token": refresh_token})
    await call("POST", "/accounts/refresh", 401, json={"refresh_token": refresh_token[:-1]})
    service_token = create_service_token(
        sent_secrets.gateway.settings.signing_key(), "admin", "jobs"
    )
    sent_secrets.record("a service's token", service_token)
    await call("GET", "/jobs", headers={"authorization": f"Bearer {service_token}"})


async def _send_passwords(client: SecretSendingClient) -> None:
    call, new_secret = client.call, client.sent_secrets.generate
    email, password = f"{secrets.token_hex(8)}@example.com", new_secret("first password")
    await call("POST", "/accounts/register", 201, json={"email": email, "password": password})
    login_body = await call("POST", "/accounts/login", json={"email": email, "password": password})
    for wrong_body in (
        {"email": email, "password": new_secret("wrong password")},
        {"email": email, "password": [new_secret("password in a list")]},
        {"email": email, "passwrod": new_secret("misspelt password")},
        {"email": new_secret("password as email"), "password": "x"},
    ):
        await call("POST", "/accounts/login", 400, 401, json=wrong_body)
    await call(
        "POST", f"/accounts/login?password={new_secret('password in a query')}", 400, json={}
    )
    broken_json = f'{{"password": "{new_secret("password in broken JSON")}", '
    await call("POST", "/accounts/login", 400, data=broken_json.encode())
    password_change = {"current_password": password, "new_password": new_secret("second password")}
    bearer_headers = {"authorization": f"Bearer {login_body['access_token']}"}
    await call("POST", "/accounts/password", 200, 204, json=password_change, headers=bearer_headers)
    reset_body = {"token": new_secret("reset token"), "password": new_secret("third password")}
    await call("POST", "/accounts/password/reset", 401, json=reset_body)


async def _send_links(client: SecretSendingClient) -> None:
    bearer_headers = {"authorization": f"Bearer {client.sent_secrets.gateway.api_key}"}
    artifact = await client.call("POST", "/artifacts", 201, data=b"text", headers=bearer_headers)
    for description, key in {
        "link": client.sent_secrets.gateway.settings.signing_key(),
        "wrong link": secrets.token_bytes(32),
    }.items():
        link = create_file_link(key, "admin", artifact["id"], "a.txt", 60)
        client.sent_secrets.record(description, link.split("/")[3])
        await client.call("GET", link, 200 if description == "link" else 401)


async def _submit_secrets(client: SecretSendingClient) -> None:
    """Submit jobs, a prompt and a chat that contain secrets in different places."""
    sent_secrets, bearer_headers = (
        client.sent_secrets,
        {"authorization": f"Bearer {client.sent_secrets.gateway.api_key}"},
    )
    webhook_secret = await client.call("GET", "/jobs/webhook-secret", headers=bearer_headers)
    sent_secrets.record("webhooks' secret", webhook_secret["secret"])
    async with _run_receiver() as (url, called_event):
        body = {
            "kind": "http",
            "request": {
                "method": "GET",
                "path": f"/v1/models?secret={sent_secrets.generate('path of a job')}",
            },
            "webhook": f"{url}?token={sent_secrets.generate('address of a webhook')}",
        }
        await client.call("POST", "/jobs", 202, json=body, headers=bearer_headers)
        await asyncio.wait_for(called_event.wait(), 60)
    graph = {"1": {"class_type": "NoSuchNode", "inputs": {"text": sent_secrets.generate("prompt")}}}
    extra_data = {"api_key_comfy_org": sent_secrets.generate("ComfyUI's account")}
    prompt = {"prompt": graph, "extra_data": extra_data}
    await client.call("POST", "/prompt", 200, 400, json=prompt, headers=bearer_headers)
    chat_body = {
        "model": "claude-haiku-5-5",
        "messages": [{"role": "user", "content": sent_secrets.generate("text")}],
    }
    expected_statuses = (400, 402, 403, 404, 429, 502, 503)
    await client.call(
        "POST", "/v1/chat/completions", *expected_statuses, json=chat_body, headers=bearer_headers
    )


async def _send_by_grpc(client: SecretSendingClient) -> None:
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{client.sent_secrets.gateway.ports.grpc}"
    ) as channel:
        for key in (
            await client.create_key("gRPC"),
            client.sent_secrets.generate("wrong key of gRPC"),
        ):
            metadata = [("application", "gateway"), ("x-api-key", key)]
            with pytest.raises(grpc.aio.AioRpcError):
                await MoyinStub(channel).GetJob(pb.GetJobRequest(id="none"), metadata=metadata)


@asynccontextmanager
async def _run_receiver() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Run a webhook receiver that responds with 410 Gone.

    Yields its URL, and an event that is set when it has been called.
    """
    called_event = asyncio.Event()

    async def answer_gone(request: web.Request) -> web.Response:
        called_event.set()
        return web.Response(status=410)

    app = web.Application()
    app.router.add_post("/hook", answer_gone)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}/hook", called_event
    await runner.cleanup()


def _read_logs(gateway: RunningStack) -> bytes:
    """Return everything that the processes of the stack have logged."""
    folders = [gateway.layout.logs, Path(gateway.layout.ray_logs).resolve()]
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    files |= {path for path in gateway.data.rglob("*.log*") if path.is_file()}
    return b"\n".join(path.read_bytes() for path in sorted(files))


def _read_datagrams(receiver: socket.socket) -> bytes:
    datagrams = []
    with suppress(BlockingIOError):
        while True:
            datagrams.append(receiver.recv(65_536))
    return b"\n".join(datagrams)
