"""Connects the router to an embedded llama.cpp server, which runs in a Ray actor and serves HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.llama import NAME_PREFIX, LlamaSpec, find_or_start
from moyin.domain import serialization
from moyin.errors import BackendUnavailable
from moyin.text.backends.http import Endpoint
from moyin.text.backends.openai import OpenAIBackend

_log = logging.getLogger(__name__)
# Seconds; an actor that waits for resources or loads its model does not respond in time, so the
# router uses other back ends.
_FIND_TIMEOUT_SECONDS = 2.0
_UNRESPONSIVE_SECONDS = 15.0


class LlamaEndpoints:
    """Finds a server's address through its actor, and starts or restarts the actor if necessary.

    Args:
        restart_after_seconds: time without a response after which the actor is restarted. This does
            not apply before the actor's first response.
    """

    def __init__(
        self, name: str, spec: LlamaSpec, *, restart_after_seconds: float = _UNRESPONSIVE_SECONDS
    ) -> None:
        # The actor's name includes the configuration, so that replicas with another configuration
        # use another actor.
        digest = hashlib.sha256(serialization.encode(spec)).hexdigest()[:8]
        self._name = f"{NAME_PREFIX}{name}-{digest}"
        self._spec = spec
        self._restart_after_seconds = restart_after_seconds
        # Until the first response since its start, the actor may be loading the model.
        self._has_responded = False
        self._unresponsive_since: float | None = None
        self.known_endpoint: Endpoint | None = None

    async def find(self) -> Endpoint:
        """Return the server's URL and API key, and renew the lease of the server's actor.

        The actor terminates itself if no replica renews its lease.

        Raises:
            BackendUnavailable: the server does not run, does not respond, or makes no progress.
        """
        actor = None
        try:
            async with asyncio.timeout(_FIND_TIMEOUT_SECONDS):
                actor = await asyncio.to_thread(find_or_start, self._name, self._spec)
                url, key = await actor.get_endpoint.remote()
        except TimeoutError:
            self.known_endpoint = None
            if await self._restart_if_unresponsive(actor):
                raise self._new_unavailable_error("is restarting") from None
            raise self._new_unavailable_error("does not respond") from None
        except RayTaskError:
            # The actor has raised `actors.llama.ServerStalled`.
            self._record_response()
            self.known_endpoint = None
            raise self._new_unavailable_error("makes no progress") from None
        except (RayError, ValueError):
            self.known_endpoint, self._has_responded = None, False
            raise self._new_unavailable_error("is not running") from None
        self._record_response()
        self.known_endpoint = Endpoint(url=f"{url}/v1", key=key)
        return self.known_endpoint

    def _new_unavailable_error(self, state: str) -> BackendUnavailable:
        return BackendUnavailable(f"the embedded llama.cpp server {state}; try again")

    def _record_response(self) -> None:
        self._has_responded, self._unresponsive_since = True, None

    async def _restart_if_unresponsive(self, actor: Any) -> bool:
        """Restart the actor if it has not responded for too long; return True if it restarts."""
        if actor is None or not self._has_responded:
            return False
        now = time.monotonic()
        if self._unresponsive_since is None:
            self._unresponsive_since = now
        unresponsive_seconds = now - self._unresponsive_since
        if unresponsive_seconds < self._restart_after_seconds:
            return False
        self._has_responded, self._unresponsive_since = False, None
        _log.error(
            "actor %s has not responded for %.0f seconds; restarting it",
            self._name,
            unresponsive_seconds,
        )
        await asyncio.to_thread(ray.kill, actor, no_restart=False)
        return True

    def invalidate_endpoint(self) -> None:
        """Discard the known endpoint, so that the next request looks it up again."""
        self.known_endpoint = None


class LlamaBackend(OpenAIBackend):
    """Back end of an embedded llama.cpp server.

    Its health check renews the lease of the server's actor, which otherwise terminates itself.
    """

    def __init__(
        self, endpoints: LlamaEndpoints, *, connections: int, prompt_cache: bool = False
    ) -> None:
        super().__init__(endpoints, max_connections=connections, prompt_cache=prompt_cache)
        self._endpoints = endpoints
        # Set here, because prompt reuse would otherwise be on until the first probe reads the name.
        self._owned_by = "llamacpp"

    async def probe(self) -> None:
        """Raise `BackendUnavailable` unless the actor and its server respond."""
        await self._endpoints.find()
        await super().probe()
