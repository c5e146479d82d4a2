from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.llama import LlamaSpec
from deployments.models import llama
from moyin.errors import BackendUnavailable

SPEC = LlamaSpec(gguf="m.gguf", alias="m", context=512, parallel=1, cpus=1.0, gpus=0.0)


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the actor's replies, to be filled by the test: endpoints, or errors to raise."""
    replies: list[Any] = []

    async def send_reply() -> tuple[str, str]:
        next_reply = replies.pop(0)
        if isinstance(next_reply, Exception):
            raise next_reply
        return str(next_reply), "key"

    actor = SimpleNamespace(get_endpoint=SimpleNamespace(remote=send_reply))
    monkeypatch.setattr(llama, "find_or_start", lambda *_: actor)
    return replies


@pytest.fixture
def endpoints() -> llama.LlamaEndpoints:
    return llama.LlamaEndpoints("small", SPEC)


async def test_invalidated_endpoint_is_looked_up_again(
    endpoints: llama.LlamaEndpoints, replies: list[Any]
) -> None:
    replies += ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    await endpoints.find()
    endpoints.invalidate_endpoint()
    assert endpoints.known_endpoint is None
    assert (await endpoints.find()).url == "http://127.0.0.1:2/v1"


async def test_endpoint_of_a_lost_actor_is_not_used(
    endpoints: llama.LlamaEndpoints, replies: list[Any]
) -> None:
    replies += ["http://127.0.0.1:1", RayActorError()]
    await endpoints.find()
    with pytest.raises(BackendUnavailable, match="is not running"):
        await endpoints.find()
    assert endpoints.known_endpoint is None


async def test_prompts_are_not_reused_before_the_first_probe(
    endpoints: llama.LlamaEndpoints,
) -> None:
    backend = llama.LlamaBackend(endpoints, connections=1)
    assert backend.overrides == {"cache_prompt": False, "id_slot": -1, "n_cache_reuse": 0}
    await backend.close()
