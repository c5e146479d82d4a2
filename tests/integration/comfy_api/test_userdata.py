"""Tests the files and settings of ComfyUI's frontend, per user, on a real gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from yarl import URL

from moyin.domain.account import UserKind
from moyin.store.keys import KeyStore
from moyin.store.users import UserStore
from tests.integration.gateway.fixtures import Farm


async def call_route(
    client: aiohttp.ClientSession, method: str, path: str, **kwargs: Any
) -> tuple[int, Any]:
    async with client.request(method, path, **kwargs) as response:
        text = await response.text()
        if response.content_type.endswith("json") and text:
            return response.status, await response.json(content_type=None)
        return response.status, text


@pytest.mark.parametrize("base_path", ["", "/api", "/comfy/api"])
async def test_userdata_files_behave_as_in_comfyui(farm: Farm, base_path: str) -> None:
    def call(method: str, path: str, **kwargs: Any) -> Any:
        return call_route(farm.client, method, base_path + path, **kwargs)

    file_path = "/userdata/workflows%2Fa%20b.json"
    assert await call("POST", f"{file_path}?overwrite=false", data=b'{"a": 1}') == (
        200, "workflows/a b.json",
    )  # fmt: skip
    assert (await call("POST", f"{file_path}?overwrite=false", data=b"x"))[0] == 409
    status, file_info = await call(
        "POST", f"{file_path}?overwrite=true&full_info=true", data=b'{"a": 2}'
    )
    assert (status, file_info["path"], file_info["size"]) == (200, "workflows/a b.json", 8)
    assert file_info["modified"] >= file_info["created"] > 1_700_000_000
    assert await call("GET", file_path) == (200, {"a": 2})
    assert await call("GET", "/userdata?dir=workflows&recurse=true&split=false&full_info=true") == (
        200, [{**file_info, "path": "a b.json"}],
    )  # fmt: skip
    assert await call("GET", "/userdata?dir=workflows%2F") == (200, ["a b.json"])
    assert (await call("GET", "/userdata?dir=nowhere"))[0] == 404
    assert (await call("GET", "/userdata"))[0] == 400
    move_path = "/move/workflows%2Fsub%2Fc.json"
    assert await call("POST", f"{file_path}{move_path}?overwrite=false") == (
        200,
        "workflows/sub/c.json",
    )
    assert (await call("GET", file_path))[0] == 404
    assert (await call("POST", f"{file_path}{move_path}"))[0] == 404
    listed_files = (await call("GET", "/v2/userdata?path=workflows"))[1]
    assert [item["path"] for item in listed_files] == ["workflows/sub", "workflows/sub/c.json"]
    assert await call("DELETE", "/userdata/workflows%2Fsub%2Fc.json") == (204, "")
    assert (await call("DELETE", "/userdata/workflows%2Fsub%2Fc.json"))[0] == 404
    assert await call("GET", "/v2/userdata") == (200, [])


@pytest.mark.parametrize(
    "path",
    [
        "..%2Fx", "%2e%2e%2Fx", "a%2F..%2F..%2Fx", "%2Fetc%2Fpasswd", "..%255Cx", "a%5Cb",
        "a/move/..%2Fb", "..%2Fa/move/b",
    ],
)  # fmt: skip
async def test_path_cannot_leave_the_folder(farm: Farm, path: str) -> None:
    url = URL(f"{farm.url}/api/userdata/{path}", encoded=True)
    async with farm.client.post(url, data=b"x") as response:
        assert (response.status, (await response.json())["code"]) == (403, "path_refused")
    for query in ("/userdata?dir=../x", "/v2/userdata?path=../x", "/userdata?dir=%252e%252e"):
        assert (await call_route(farm.client, "GET", query))[0] == 403
    assert await call_route(farm.client, "GET", "/v2/userdata") == (200, [])


async def test_userdata_is_separate_per_tenant_and_per_person(farm: Farm) -> None:
    users, keys = UserStore(farm.database), KeyStore(farm.database)
    person = await users.create(UserKind.PLAYER, email="a@example.com", name="a")
    her_key = (await keys.create("ann", "hers", user=person.id))[1]
    async with farm.open_session(her_key) as her_session:
        callers = {"ann": farm.client, "bob": farm.other, "person": her_session}
        for name, client in callers.items():
            assert await call_route(client, "GET", "/settings") == (200, {})
            assert await call_route(client, "POST", "/userdata/a.json", data=name) == (
                200,
                "a.json",
            )
            await call_route(client, "POST", "/settings/who", json=name)
        for name, client in callers.items():
            async with client.get("/userdata/a.json") as response:
                assert await response.text() == name
            assert await call_route(client, "GET", "/settings") == (200, {"who": name})


async def test_concurrent_settings_are_merged(farm: Farm) -> None:
    assert await call_route(farm.client, "GET", "/api/settings/Comfy.X") == (200, None)
    assert await call_route(farm.client, "POST", "/api/settings", json={"a": 1, "b": [2]}) == (
        200,
        "",
    )
    await asyncio.gather(
        *(call_route(farm.client, "POST", f"/api/settings/Comfy.{n}", json=n) for n in range(10))
    )
    stored_settings = (await call_route(farm.client, "GET", "/api/settings"))[1]
    assert stored_settings == {"a": 1, "b": [2], **{f"Comfy.{n}": n for n in range(10)}}
    assert await call_route(farm.client, "GET", "/api/settings/b") == (200, [2])
    assert (await call_route(farm.client, "POST", "/api/settings", json=[1]))[0] == 400
    deep_json = b"[" * 100_000
    for path in ("/api/settings", "/api/settings/Comfy.X"):
        status, body = await call_route(farm.client, "POST", path, data=deep_json)
        assert (status, body["code"]) == (400, "invalid_json")
    # They are a file like any other, which may be anything.
    for content in (b"junk", deep_json):
        await call_route(farm.client, "POST", "/userdata/comfy.settings.json", data=content)
        assert await call_route(farm.client, "GET", "/api/settings") == (200, {})


async def test_userdata_is_bounded_and_not_served_as_a_page(farm: Farm) -> None:
    status, body = await call_route(farm.client, "POST", "/userdata/a", data=b"x" * 200_000)
    assert (status, body["code"]) == (413, "no_room_left")
    await call_route(farm.client, "POST", "/userdata/a.html", data=b"<script>alert(1)</script>")
    async with farm.client.get("/userdata/a.html") as response:
        assert response.content_type == "application/octet-stream"
        assert response.headers["content-security-policy"].startswith("sandbox")
