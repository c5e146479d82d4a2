"""Tests the authorisation matrix: every route with each role, and as a caller of another tenant.

The routes come from the apps' OpenAPI descriptions; a test fails if a new route is not listed here.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blake3 import blake3

from moyin.access.gatekeeper.identity import create_authenticator
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from moyin.store.usage import UsageEntry
from tests.integration.access.fixtures import PASSWORD, SECRET, AccountsApp, accounts_serving
from tests.integration.gateway.fixtures import SIGNING_KEY, Farm
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import serving
from tests.waiting import eventually

# `-` no key: 401. `x` a scope is missing: 403. `h` hidden, as if there were no such thing: 404.
# `+` let in: whatever is answered then, it is about the request.
_METHODS = ("get", "head", "post", "put", "patch", "delete")

ACCOUNTS_ROLES = (
    "nobody", "player", "viewer", "member", "admin", "operator", "other admin", "text key",
)  # fmt: skip
ACCOUNTS = {
    "GET /.well-known/jwks.json": "++++++++",
    "GET /healthz": "++++++++",
    "GET /readyz": "++++++++",
    "POST /register": "++++++++",
    "POST /login": "++++++++",
    "POST /refresh": "++++++++",
    "POST /session": "++++++++",
    "POST /session/renew": "++++++++",  # by its own cookie
    "POST /session/end": "++++++++",
    "GET /sessions": "-++++x+x",
    "DELETE /sessions/{session}": "-hhhhxhx",
    "POST /password/forgot": "++++++++",
    "POST /password/reset": "++++++++",
    "GET /oidc": "++++++++",
    "GET /sign-in": "++++++++",
    "POST /oidc/begin": "hhhhhhhh",  # no provider is configured
    "POST /oidc/finish": "++++++++",
    "POST /logout": "-++++x+x",
    "POST /password": "-++++x+x",
    "GET /whoami": "-+++++++",
    "GET /me": "-++++x++",
    "PATCH /me": "-++++x+x",
    "DELETE /me": "-+xxxxxx",
    "GET /organisations": "-x+++++x",
    "POST /organisations": "-xxxx+xx",
    "GET /organisations/{organisation}": "-x++++hx",
    "GET /organisations/{organisation}/members": "-x++++hx",
    "POST /organisations/{organisation}/members": "-xxx++hx",
    "POST /organisations/{organisation}/members/{user}/invitation": "-xxx++hx",
    "POST /organisations/{organisation}/service-accounts": "-xxx++hx",
    "PATCH /organisations/{organisation}/members/{user}": "-xxx++hx",
    "GET /users": "-xxxx+xx",
    "GET /users/{user}": "-x++++hx",
    "PATCH /users/{user}": "-xxxx+xx",
    "GET /audit": "-xxx+++x",
    "GET /keys": "-xx++++x",
    "POST /keys": "-xx++++x",
    "POST /keys/{key}/rotate": "-xxh++hx",
    "DELETE /keys/{key}": "-xxh++hx",
    "POST /signing-keys": "-xxxx+xx",
    "DELETE /signing-keys/{kid}": "-xxxx+xx",
    "GET /limits": "-+++++++",
    "GET /limits/{subject}": "-xxx++hx",
    "GET /limits/{subject}/budgets": "-xxx++hx",
    "PUT /limits/{subject}": "-xxx++hx",
    "DELETE /limits/{subject}": "-xxx++hx",
}

GATEWAY_ROLES = ("nobody", "player", "text", "reader", "writer", "everything", "other tenant")
GATEWAY = {
    "GET /healthz": "+++++++",
    "GET /readyz": "+++++++",
    "GET /jobs": "-xx+x++",
    "POST /jobs": "-xxx+++",
    "GET /jobs/webhook-secret": "-xxx+++",
    "POST /jobs/cancel": "-xxx+++",
    "POST /jobs/delete": "-xxx+++",
    "GET /jobs/{job_id}": "-xx+x+h",
    "DELETE /jobs/{job_id}": "-xxx++h",  # it has not ended
    "GET /jobs/{job_id}/graph": "-xx+x+h",
    "GET /jobs/{job_id}/events": "-xx+x+h",
    "GET /jobs/{job_id}/preview": "-xxhxhh",  # it does not render
    "POST /jobs/{job_id}/token": "-xxx++h",
    "POST /jobs/{job_id}/cancel": "-xxx++h",
    "POST /jobs/{job_id}/retry": "-xxx++h",
    "GET /cluster": "-xx+x++",
    "GET /cluster/events": "-xx+x++",
    "GET /cluster/problems": "-xxxx++",
    "GET /cluster/routes": "-xxxx++",
    "GET /cluster/links": "-xxxx++",
    "GET /cluster/config-changes": "-xxxx++",
    "GET /cluster/doctor": "-xxxx++",
    "GET /cluster/metrics": "-xxxx++",
    "GET /cluster/metrics/targets": "-xxxx++",
    "POST /artifacts": "-xxx+++",
    "GET /artifacts": "-xx+x++",
    "POST /artifacts/archive": "-xx+x++",  # names no file
    "GET /artifacts/{artifact_id}": "-xx+x+h",
    "DELETE /artifacts/{artifact_id}": "-xxx++h",
    "POST /artifacts/{artifact_id}/link": "-xxx++h",
    "PUT /artifacts/{artifact_id}/favourite": "-xxx++h",
    "DELETE /artifacts/{artifact_id}/favourite": "-xxx++h",
    **dict.fromkeys(
        (
            "GET /system_stats",
            "GET /features",
            "GET /users",
            "GET /extensions",
            "GET /i18n",
            "GET /workflow_templates",
            "GET /global_subgraphs",
            "GET /global_subgraphs/{id}",
            "GET /node_replacements",
            "GET /internal/logs",
            "GET /internal/logs/raw",
            "GET /internal/folder_paths",
            "GET /internal/files/{kind}",
            "GET /models",
            "GET /embeddings",
            "GET /experiment/models",
            "GET /object_info",
            "GET /object_info/{node}",
        ),
        "-xx+x++",
    ),
    # No pool has such models.
    **dict.fromkeys(
        (
            "GET /models/{folder}",
            "GET /experiment/models/{folder}",
            "GET /experiment/models/preview/{folder}/{index}/{file}",
            "GET /extensions/{path}",
        ),
        "-xxhxhh",
    ),
    **dict.fromkeys(("GET /prompt", "GET /queue", "GET /history", "GET /api/jobs"), "-xx+x++"),
    **dict.fromkeys(
        (
            "POST /prompt",
            "POST /queue",
            "POST /history",
            "POST /interrupt",
            "POST /free",
            "POST /upload/image",
            "POST /upload/mask",
            "POST /api/jobs/cancel",
            # Nothing is ended of what is not there.
            "POST /api/jobs/{job_id}/cancel",
        ),
        "-xxx+++",
    ),
    "GET /history/{prompt_id}": "-xx+x++",  # empty of what has not ended, or is not there
    "GET /view": "-xxhxhh",  # names no file, which ComfyUI does not find
    "GET /api/jobs/{job_id}": "-xx+x+h",
    "GET /view_metadata/{folder}": "-xx+x++",  # names no file
    "POST /users": "-xxx+++",
    "PATCH /internal/logs/subscribe": "-xxx+++",
    "GET /api/v2/jobs": "-xx+x++",
    "POST /api/v2/jobs": "-xxx+++",
    "GET /api/v2/jobs/{job_id}": "-xx+x+h",
    "GET /api/v2/jobs/{job_id}/workflow": "-xx+x+h",
    "GET /api/v2/jobs/{job_id}/events": "-xx+x+h",
    "POST /api/v2/jobs/{job_id}/cancel": "-xxx++h",
    "POST /api/v2/assets": "-xxx+++",
    "POST /api/v2/assets/from-hash": "-xxx+++",
    "GET /api/v2/assets/{asset_id}": "-xx+x+h",
    "GET /api/v2/assets/{asset_id}/content": "-xx+x+h",
    "DELETE /api/v2/assets/{asset_id}": "-xxx++h",
    "GET /userdata": "-xx+x++",
    "GET /v2/userdata": "-xx+x++",
    "GET /userdata/{file}": "-xxhxhh",
    "POST /userdata/{file}": "-xxx+++",
    "DELETE /userdata/{file}": "-xxx+h+",  # each their own of that name
    "POST /userdata/{file}/move/{dest}": "-xxxhhh",  # which is gone now
    "GET /settings": "-xx+x++",
    "POST /settings": "-xxx+++",
    "GET /settings/{id}": "-xx+x++",
    "POST /settings/{id}": "-xxx+++",
    "GET /artifacts/signed/{token}/{name}": "+++++++",  # the link is the key
    "GET /artifacts/signed/archive/{token}/{name}": "+++++++",
    "GET /templates": "-xx+x++",
    "GET /templates/{name}": "-xx+x++",
    "POST /graphs/convert": "-xx+x++",  # converts no graph
    "GET /comfy/session": "-------",  # of a browser's cookie alone
    "POST /comfy/session": "+++++++",
    "POST /comfy/session/end": "+++++++",
}

MODELS_ROLES = ("nobody", "player", "reader", "text", "everything", "other tenant")
MODELS = {
    "GET /backends": "-xxx++",  # operators' and administrators'
    "GET /requests": "-xx+++",
    "GET /usage": "-xx+++",
    "POST /images/generations": "-xxx++",  # pictures are jobs
    "GET /requests/{request_id}": "-xx++h",
    "GET /quality/export": "-xxx++",  # administrators'
    "POST /quality/reset": "-xxx++",
    "POST /quality/freeze": "-xxx++",
    # An operator's. A pull of a model that is there is everybody's.
    **{f"POST /ollama/api/{call}": "-xxx++" for call in ("push", "create", "copy")},
    "DELETE /ollama/api/delete": "-xxx++",
    "POST /ollama/api/blobs/{digest}": "-xxx++",
}
ASKED = UsageEntry(
    request_id="asked-before", owner="ada", backend="b", model="m", input_tokens=1,
    cached_tokens=0, output_tokens=1, cost_usd=Decimal(0), complete=True,
)  # fmt: skip
MODELS_PUBLIC = frozenset({"GET /healthz", "GET /readyz"})


def list_routes(description: Mapping[str, Any]) -> set[str]:
    """Return the routes of an OpenAPI description."""
    return {
        f"{method.upper()} {path}"
        for path, methods in description["paths"].items()
        for method in methods
        if method in _METHODS
    }


def to_matrix_character(status: int, code: str | None) -> str:
    if code in ("missing_api_key", "invalid_api_key"):
        return "-"
    if code == "insufficient_scope":
        return "x"
    return "h" if status == 404 else "+"


class RoleAccounts:
    """A user of each role, and the objects that they try to access."""

    def __init__(self, accounts_app: AccountsApp) -> None:
        self.accounts_app = accounts_app

    async def create_tenants(self) -> None:
        accounts_app = self.accounts_app
        self.studio = await accounts_app.create_organisation()
        self.rival = await accounts_app.create_organisation()
        self.boss = (await accounts_app.add_member(self.studio, "admin"))["access_token"]

    async def create_bearer(self, role: str) -> str | None:
        """Return an access token or key of the role; new for each call, as some routes end sessions."""
        match role:
            case "nobody":
                return None
            case "player":
                return str((await self.accounts_app.register_player())["access_token"])
            case "operator":
                return self.accounts_app.operator
            case "other admin":
                return str(
                    (await self.accounts_app.add_member(self.rival, "admin"))["access_token"]
                )
            case "text key":
                member_token = (await self.accounts_app.add_member(self.studio))["access_token"]
                return str(
                    (
                        await self.accounts_app.expect_ok(
                            "POST", "/keys", member_token, {"scopes": ["text"]}
                        )
                    )["key"]
                )
        return str((await self.accounts_app.add_member(self.studio, role))["access_token"])

    async def fill_path(self, template: str) -> str:
        """Return the path of a route, with new objects in place of the names in braces.

        Args:
            template: the path as OpenAPI describes it, such as ``/keys/{key}``.
        """
        call_ok, path_values = self.accounts_app.expect_ok, {"organisation": self.studio}
        if "{user}" in template or "{subject}" in template:
            accounts_path = f"/organisations/{self.studio}/service-accounts"
            service_account_id = (await call_ok("POST", accounts_path, self.boss, {"name": "bot"}))[
                "id"
            ]
            path_values |= {"user": service_account_id, "subject": f"user:{service_account_id}"}
        path_values["session"] = "ses_unknown"
        if "{key}" in template:
            path_values["key"] = (await call_ok("POST", "/keys", self.boss, {"scopes": ["text"]}))[
                "id"
            ]
        if "{kid}" in template:
            path_values["kid"] = (
                await call_ok("POST", "/signing-keys", self.accounts_app.operator)
            )["kid"]
            await call_ok("POST", "/signing-keys", self.accounts_app.operator)
        return template.format(**path_values) + (
            "?email=a@example.com" if template == "/users" else ""
        )


def build_body(route: str) -> Any:
    """Return a valid body, so that only the role decides the result."""
    email = f"{secrets.token_hex(6)}@example.com"
    bodies: dict[str, Any] = {
        "POST /register": {"email": email, "password": PASSWORD},
        "POST /login": {"email": email, "password": PASSWORD},
        "POST /refresh": {"refresh_token": "x"},
        "POST /session": {"email": email, "password": PASSWORD},
        "POST /password/forgot": {"email": email},
        "POST /password/reset": {"token": "x", "password": PASSWORD},
        "POST /password": {"current_password": "x", "new_password": PASSWORD},
        "POST /oidc/begin": {"provider": "x", "redirect_uri": "https://x.example/"},
        "POST /oidc/finish": {"state": "x", "code": "x"},
        "POST /organisations": {"name": email},
        "PATCH /users/{user}": {"disabled": False},
        "POST /organisations/{organisation}/members": {"email": email},
        "POST /organisations/{organisation}/service-accounts": {"name": "bot"},
    }
    return bodies.get(route, {} if route.startswith(("PUT", "PATCH", "POST")) else None)


@pytest.fixture
async def role_accounts(
    migrated_sqlite: Path, tmp_path: Path, valkey_server: ValkeyServer
) -> AsyncIterator[RoleAccounts]:
    (tmp_path / "moyin.db").write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(data=tmp_path, redis_url=valkey_server.url, secret=SECRET)
    async with accounts_serving(settings) as accounts_app:
        tenant_accounts = RoleAccounts(accounts_app)
        await tenant_accounts.create_tenants()
        yield tenant_accounts


async def test_accounts_routes_match_the_matrix(role_accounts: RoleAccounts) -> None:
    description = await role_accounts.accounts_app.expect_ok("GET", "/openapi.json")
    assert list_routes(description) == ACCOUNTS.keys(), "list the route with what each role may"
    differences = {}
    for route, expected_outcomes in ACCOUNTS.items():
        method, template = route.split(" ")
        outcomes = ""
        for role in ACCOUNTS_ROLES:
            path = await role_accounts.fill_path(template)
            response = await role_accounts.accounts_app.call(
                method, path, await role_accounts.create_bearer(role), build_body(route)
            )
            assert response.status < 500, (route, role, response)
            outcomes += to_matrix_character(response.status, response.code)
        if outcomes != expected_outcomes:
            differences[route] = f"{outcomes}, not {expected_outcomes}"
    assert differences == {}


async def test_gateway_routes_match_the_matrix(farm: Farm) -> None:
    bearers = await create_gateway_bearers(farm)
    async with aiohttp.ClientSession(farm.url) as session:
        async with session.get("/openapi.json") as response:
            description = await response.json()
        assert list_routes(description) == GATEWAY.keys(), "list the route with what each role may"
        job_id = await create_render_job(farm)
        assert await find_matrix_differences(farm, session, bearers, job_id, GATEWAY) == {}
        for role, bearer in bearers.items():
            expected = GATEWAY["GET /jobs/{job_id}/events"][GATEWAY_ROLES.index(role)]
            assert (
                await websocket_to_matrix_character(session, f"/jobs/{job_id}/ws", bearer)
                == expected
            ), role


async def create_gateway_bearers(farm: Farm) -> dict[str, str | None]:
    """Return a key of the tenant ``ann`` for each of `GATEWAY_ROLES`, or None for no key."""
    return await create_bearers(KeyStore(farm.database), "ann")


async def create_bearers(keys: KeyStore, owner: str) -> dict[str, str | None]:
    scopes = {
        "player": {"player"}, "text": {"text"}, "reader": {"jobs:read"},
        "writer": {"jobs:write"}, "everything": {"*"}, "other tenant": {"*"},
    }  # fmt: skip
    bearers: dict[str, str | None] = {"nobody": None}
    for role, held_scopes in scopes.items():
        key_owner = f"not {owner}" if role == "other tenant" else owner
        bearers[role] = (await keys.create(key_owner, role, scopes=held_scopes))[1]
    return bearers


async def create_render_job(farm: Farm) -> str:
    """Create a queued render job of the tenant, and return its id."""
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    return str((await farm.submit_job({"kind": "render", "workflow": graph}))["id"])


async def find_matrix_differences(
    farm: Farm,
    session: aiohttp.ClientSession,
    bearers: Mapping[str, str | None],
    job_id: str,
    matrix: Mapping[str, str],
    base_path: str = "",
) -> dict[str, str]:
    """Call each route of ``matrix`` as each role, and return the differences from the matrix.

    Args:
        job_id: the id of the job that the paths contain.
        base_path: the URL or path in front of the routes.
    """
    path_values = {
        "job_id": job_id, "prompt_id": job_id, "name": "swatch", "token": "x", "node": "x", "kind": "input",
        "folder": "x", "index": 0,
        "file": "a.json", "path": "pack/x.js", "dest": "b.json", "id": "x",
        "digest": f"blake3:{blake3(b'text').hexdigest()}",
    }  # fmt: skip
    differences = {}
    for route, expected_outcomes in matrix.items():
        method, template = route.split(" ")
        outcomes = ""
        for bearer in bearers.values():
            # One for each call: some routes delete it.
            artifact_id = (
                await upload_artifact(farm) if "{a" in template or "{digest}" in template else ""
            )
            path = template.format_map(
                path_values | {"artifact_id": artifact_id, "asset_id": artifact_id}
            )
            headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
            async with session.request(
                method, base_path + path, headers=headers, allow_redirects=False
            ) as response:
                code = None
                if response.status >= 400 and method == "HEAD":
                    code = {401: "missing_api_key", 403: "insufficient_scope"}.get(response.status)
                elif response.status >= 400:
                    body = await response.json(content_type=None)
                    # ComfyUI's protocols have a shape of their own.
                    code = body.get("code") or body["error"]["details"]["code"]
                assert response.status < 500 or path == "/readyz", (route, code)
                outcomes += to_matrix_character(response.status, code)
        if outcomes != expected_outcomes:
            differences[route] = f"{outcomes}, not {expected_outcomes}"
    return differences


async def upload_artifact(farm: Farm) -> str:
    async with farm.client.post("/artifacts?name=a.txt", data=b"text") as response:
        return str((await response.json())["id"])


async def websocket_to_matrix_character(
    session: aiohttp.ClientSession, path: str, bearer: str | None
) -> str:
    """Open a WebSocket, and return its result as a character of the matrix.

    The result is ``+`` if the server sends a text. Otherwise the close code decides it.
    """
    headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
    async with session.ws_connect(path, headers=headers) as connection:
        message = await connection.receive(10)
        if message.type is aiohttp.WSMsgType.TEXT:
            return "+"
        assert message.type is aiohttp.WSMsgType.CLOSE
        return to_matrix_character(message.data % 1000, (message.extra or "").partition(":")[0])


async def test_a_job_has_only_the_rights_of_its_submitter(working_farm: Farm) -> None:
    farm = working_farm
    keys = KeyStore(farm.database)
    key_id, key = await keys.create("ann", "narrow", scopes={"jobs:write", "jobs:read"})
    http_job = {"kind": "http", "request": {"path": "/svc/x"}}
    chat_job = {"kind": "chat", "request": {"model": "m", "messages": [{"role": "user"}]}}
    async with farm.open_session(key) as narrow_session:
        async with narrow_session.post("/jobs", json=chat_job) as response:
            body = await response.json()
            assert (response.status, body["scope"]) == (403, "text")
        async with narrow_session.post("/jobs", json=http_job) as response:
            job_id = (await response.json())["id"]
    await farm.wait_for_status(job_id, "succeeded")
    [headers] = [headers for _, path, _, headers in farm.services.calls if path == "/svc/x"]
    token = headers["authorization"].removeprefix("Bearer ")
    identity = await create_authenticator(farm.database, SIGNING_KEY).authenticate(token)
    assert (identity.owner, identity.key_id, identity.service) == ("ann", key_id, "jobs")
    assert identity.scopes == {"jobs:write", "jobs:read"}


async def test_models_routes_match_the_matrix(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as models_app,
        aiohttp.ClientSession(f"{models_app.url}/v1/") as session,
    ):
        database = Database(Settings(data=tmp_path).sql_url)
        keys = KeyStore(database)
        bearers = await create_bearers(keys, "ada")
        await database.close()
        models_app.ledger.record(ASKED)
        await eventually(lambda: models_app.ledger.get("ada", ASKED.request_id))
        async with session.get("openapi.json") as response:
            description = await response.json()
        for route in list_routes(description):
            method, path = route.split(" ")
            path = re.sub(r"{\w+}", ASKED.request_id, path)
            outcomes = ""
            for role in MODELS_ROLES:
                bearer = bearers[role]
                headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
                async with session.request(method, path[1:], headers=headers) as response:
                    text = await response.text()
                known_codes = ("missing_api_key", "insufficient_scope", "request_not_found")
                codes_in_body = [code for code in known_codes if code in text]
                if not codes_in_body and "API key" in text:
                    codes_in_body = ["missing_api_key"]
                code = codes_in_body[0] if codes_in_body else None
                outcomes += to_matrix_character(404 if code == "request_not_found" else 0, code)
            expected = "++++++" if route in MODELS_PUBLIC else MODELS.get(route, "-xx+++")
            assert outcomes == expected, (route, text)


async def test_calls_of_other_tenants_need_all_scopes(tmp_path: Path) -> None:
    """Only keys with all scopes, such as an operator's, may ask for the calls of other tenants."""
    async with (
        serving(tmp_path) as models_app,
        aiohttp.ClientSession(f"{models_app.url}/v1/") as session,
    ):
        database = Database(Settings(data=tmp_path).sql_url)
        bearers = await create_bearers(KeyStore(database), "ada")
        await database.close()
        for path in ("requests?owner=eve", "requests?owner=*", "usage?owner=eve", "usage?owner=*"):
            outcomes = ""
            for role in MODELS_ROLES:
                bearer = bearers[role]
                headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
                async with session.get(path, headers=headers) as response:
                    outcomes += to_matrix_character(
                        response.status, (await response.json()).get("code")
                    )
            assert outcomes == "-xxx++", path
