"""Tests that no tenant can use or detect another tenant's prompts in llama.cpp's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.integration.text.fixtures import build_local_backend, serving, wait_until_probed

SECRET = "The launch code of the studio's next film is forty-two. " * 40


async def complete_chat(url: str, key: str, **kwargs: Any) -> dict[str, Any]:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 2,
        **kwargs,
    }
    headers = {"authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        response_body: dict[str, Any] = await response.json()
        assert response.status == 200, response_body
        return response_body


async def create_other_key(folder: Path) -> str:
    database = Database(Settings(data=folder).sql_url)
    _, key = await KeyStore(database).create("bob", "test")
    await database.close()
    return key


@pytest.mark.parametrize(
    "members", [{}, {"cache_prompt": True, "id_slot": 0}], ids=["plain", "asking-for-it"]
)
async def test_a_tenants_cached_prompt_is_invisible_to_others(
    llama: str, tmp_path: Path, members: dict[str, Any]
) -> None:
    async with serving(tmp_path, build_local_backend(llama)) as models_app:
        await wait_until_probed(models_app)
        await complete_chat(models_app.url, models_app.api_key, **members)
        completion = await complete_chat(
            models_app.url, await create_other_key(tmp_path), **members
        )
        prompt_tokens = completion["usage"]["prompt_tokens"]
        assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        # The whole prompt was processed again, so the response time doesn't reveal the cache either.
        assert completion["timings"]["cache_n"] == 0
        assert completion["timings"]["prompt_n"] == prompt_tokens > 400


async def test_single_tenant_may_reuse_cached_prompts(llama: str, tmp_path: Path) -> None:
    async with serving(
        tmp_path, {**build_local_backend(llama), "prompt_cache": True}
    ) as models_app:
        await wait_until_probed(models_app)
        await complete_chat(models_app.url, models_app.api_key)
        completion = await complete_chat(models_app.url, models_app.api_key)
        assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] > 400
