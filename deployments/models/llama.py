"""The embedded llama.cpp server as a back end: found through Ray, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.llama import LlamaSpec, find_or_start
from moyin.domain import serialization
from moyin.errors import BackendUnavailable
from moyin.text.backends.endpoint import Endpoint
from moyin.text.backends.openai import OpenAIBackend

__all__ = ["LlamaBackend", "LlamaEndpoints"]

_log = logging.getLogger(__name__)
# A model that loads, or waits for resources, answers later; others can answer now.
_PATIENCE_SECONDS = 2.0
# An actor that has answered before and then nothing for so long is replaced.
_SILENT_SECONDS = 15.0


class LlamaEndpoints:
    """Asks the actor where its server is; starts the actor where there is none, and has it started
    anew where it has stopped answering.

    Args:
        silent: seconds without an answer, of an actor that has answered before, after which it is
            replaced.
    """

    def __init__(self, name: str, spec: LlamaSpec, *, silent: float = _SILENT_SECONDS) -> None:
        # Another configuration is another actor, so that old replicas keep theirs.
        digest = hashlib.sha256(serialization.encode(spec)).hexdigest()[:8]
        self._name = f"llama-{name}-{digest}"
        self._spec = spec
        self._silent = silent
        # Whether it has answered since it was started: else its model may be loading.
        self._answered = False
        self._silent_since: float | None = None
        self.known: Endpoint | None = None

    async def find(self) -> Endpoint:
        actor = None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                actor = await asyncio.to_thread(find_or_start, self._name, self._spec)
                url, key = await actor.endpoint.remote()
        except TimeoutError:
            self.known = None
            if await self._replaced(actor):
                raise BackendUnavailable("the embedded server is restarted") from None
            raise BackendUnavailable("the embedded server does not answer") from None
        except RayTaskError:
            # It lives, and says itself that its server hangs.
            self._alive()
            self.known = None
            raise BackendUnavailable("the embedded server is stuck") from None
        except (RayError, ValueError):
            self.known, self._answered = None, False
            raise BackendUnavailable("the embedded server is not running") from None
        self._alive()
        self.known = Endpoint(url=f"{url}/v1", key=key)
        return self.known

    def _alive(self) -> None:
        self._answered, self._silent_since = True, None

    async def _replaced(self, actor: Any) -> bool:
        """Have Ray start the actor anew if it has missed every question for too long."""
        if actor is None or not self._answered:
            return False
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        silent = now - self._silent_since
        if silent < self._silent:
            return False
        # Until it answers again it is one that starts.
        self._answered, self._silent_since = False, None
        _log.error("%s has not answered for %.0f seconds: it is restarted", self._name, silent)
        await asyncio.to_thread(ray.kill, actor, no_restart=False)
        return True

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
