"""Connects to the embedded llama.cpp server: Ray starts it, and requests reach it over HTTP."""

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
from moyin.text.backends.http import Endpoint
from moyin.text.backends.openai import OpenAIBackend

__all__ = ["LlamaBackend", "LlamaEndpoints"]

_log = logging.getLogger(__name__)
# The actor responds late while it waits for resources or loads its model. Other back ends can take the
# request meanwhile.
_FIND_SECONDS = 2.0
# An actor that has responded before is restarted after this time without a response.
_UNRESPONSIVE_SECONDS = 15.0


class LlamaEndpoints:
    """Finds the server's address through its actor, which it starts or restarts if necessary.

    Args:
        restart_after: seconds without a response after which an actor that has responded before is
            restarted.
    """

    def __init__(
        self, name: str, spec: LlamaSpec, *, restart_after: float = _UNRESPONSIVE_SECONDS
    ) -> None:
        # Each configuration has an actor of its own, so that replicas with the old one keep theirs.
        digest = hashlib.sha256(serialization.encode(spec)).hexdigest()[:8]
        self._name = f"llama-{name}-{digest}"
        self._spec = spec
        self._restart_after = restart_after
        # False until the first response since the start: its model may still be loading.
        self._has_responded = False
        self._unresponsive_since: float | None = None
        self.known_endpoint: Endpoint | None = None

    async def find(self) -> Endpoint:
        """Return the server's endpoint.

        Raises:
            BackendUnavailable: the server does not run, or does not respond.
        """
        actor = None
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                actor = await asyncio.to_thread(find_or_start, self._name, self._spec)
                url, key = await actor.endpoint.remote()
        except TimeoutError:
            self.known_endpoint = None
            if await self._restart_if_unresponsive(actor):
                raise BackendUnavailable("the embedded server is restarting") from None
            raise BackendUnavailable("the embedded server does not respond") from None
        except RayTaskError:
            # The actor responds, and reports that its server hangs.
            self._record_response()
            self.known_endpoint = None
            raise BackendUnavailable("the embedded server is stuck") from None
        except (RayError, ValueError):
            self.known_endpoint, self._has_responded = None, False
            raise BackendUnavailable("the embedded server is not running") from None
        self._record_response()
        self.known_endpoint = Endpoint(url=f"{url}/v1", key=key)
        return self.known_endpoint

    def _record_response(self) -> None:
        self._has_responded, self._unresponsive_since = True, None

    async def _restart_if_unresponsive(self, actor: Any) -> bool:
        """Have Ray restart the actor if it has not responded for too long; return whether it did."""
        if actor is None or not self._has_responded:
            return False
        now = time.monotonic()
        if self._unresponsive_since is None:
            self._unresponsive_since = now
        seconds = now - self._unresponsive_since
        if seconds < self._restart_after:
            return False
        # Until its next response the actor counts as starting.
        self._has_responded, self._unresponsive_since = False, None
        _log.error("%s has not responded for %.0f seconds; restarting it", self._name, seconds)
        await asyncio.to_thread(ray.kill, actor, no_restart=False)
        return True

    def forget(self) -> None:
        """Discard the known endpoint, so that the next request looks it up."""
        self.known_endpoint = None


class LlamaBackend(OpenAIBackend):
    """Sends requests to the embedded server; its health check also renews the actor's lease."""

    def __init__(
        self, endpoints: LlamaEndpoints, *, connections: int, prompt_cache: bool = False
    ) -> None:
        super().__init__(endpoints, connections=connections, prompt_cache=prompt_cache)
        self._actor = endpoints
        # Set now and not by the first probe, because prompt reuse must be off from the first request.
        self._owner = "llamacpp"

    async def probe(self) -> None:
        """Check the actor and its server."""
        await self._actor.find()
        await super().probe()
