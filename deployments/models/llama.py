"""The embedded llama.cpp server as a back end: found through Ray, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import hashlib

from ray.exceptions import RayError

from actors.llama import LlamaSpec, find_or_start
from moyin.backends.endpoint import Endpoint
from moyin.backends.openai import OpenAIBackend
from moyin.domain import codec
from moyin.errors import BackendUnavailable

__all__ = ["LlamaBackend", "LlamaEndpoints"]

# A model that loads, or waits for resources, answers later; others can answer now.
_PATIENCE_SECONDS = 2.0


class LlamaEndpoints:
    """Asks the actor where its server is; starts the actor where there is none."""

    def __init__(self, name: str, spec: LlamaSpec) -> None:
        # Another configuration is another actor, so that old replicas keep theirs.
        digest = hashlib.sha256(codec.encode(spec)).hexdigest()[:8]
        self._name = f"llama-{name}-{digest}"
        self._spec = spec
        self.known: Endpoint | None = None

    async def find(self) -> Endpoint:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                actor = await asyncio.to_thread(find_or_start, self._name, self._spec)
                url, key = await actor.endpoint.remote()
        except TimeoutError:
            self.known = None
            raise BackendUnavailable("the embedded server is starting") from None
        except (RayError, ValueError):
            self.known = None
            raise BackendUnavailable("the embedded server is not running") from None
        self.known = Endpoint(url=f"{url}/v1", key=key)
        return self.known

    def forget(self) -> None:
        self.known = None


class LlamaBackend(OpenAIBackend):
    """An OpenAI-compatible server whose health check also prolongs its lease."""

    def __init__(
        self, endpoints: LlamaEndpoints, *, connections: int, prompt_cache: bool = False
    ) -> None:
        super().__init__(endpoints, connections=connections, prompt_cache=prompt_cache)
        self._actor = endpoints
        # Known before the first probe: until then nothing may be reused either.
        self._owner = "llamacpp"

    async def probe(self) -> None:
        await self._actor.find()
        await super().probe()
