"""Provides small in-memory implementations of the interfaces of stores and services, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec
from moyin.domain.limits import JobReservation
from moyin.errors import InvalidKey, InvalidRequest, InvalidToken
from moyin.http.breaker import BreakerState
from moyin.jobs.protocol.renders import DEFAULT_POOL
from moyin.store.render_cache import CachedRender, CacheRules
from moyin.text.routing.telemetry import CallRecord


class InMemoryRenderCache:
    """An implementation of `moyin.store.render_cache.RenderCache` in memory, without eviction."""

    def __init__(self) -> None:
        self.renders: dict[tuple[str, str], CachedRender] = {}

    async def get(self, owner: str, digest: str) -> CachedRender | None:
        return self.renders.get((owner, digest))

    async def put(self, owner: str, digest: str, render: CachedRender, rules: CacheRules) -> None:
        self.renders[owner, digest] = render


class FixedJobPools:
    """An implementation of `moyin.jobs.ports.JobPools` with the given pools."""

    def __init__(self, *pools: str) -> None:
        self._pools = pools

    def assign(self, pool: str) -> str:
        if pool == DEFAULT_POOL and pool not in self._pools and self._pools:
            return self._pools[0]
        self.require(pool)
        return pool

    def require(self, pool: str) -> None:
        if pool not in self._pools:
            raise InvalidRequest(
                f"there is no render pool {pool!r}; available pools: {', '.join(self._pools)}"
            )


class PermissiveGraphGuard:
    """An implementation of `moyin.jobs.ports.GraphGuard` that accepts every graph."""

    def __init__(self, *pools: str) -> None:
        self._pools = pools

    async def find_pools(self, caller: Identity) -> FixedJobPools:
        return FixedJobPools(*self._pools)

    async def choose_pool(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        return self._pools[0]

    async def check_size(
        self,
        caller: Identity,
        graphs: Sequence[tuple[str, Mapping[str, Any]]],
        patches: Sequence[Mapping[str, Any]] = (),
    ) -> None: ...

    async def check_graph(
        self, caller: Identity, pool: str, graph: Mapping[str, Any], own_names: Collection[str]
    ) -> bool:
        return True


class EmptyReservation:
    """An implementation of `moyin.jobs.ports.HeldReservation` that reserves no money."""

    reservation: JobReservation | None = None

    def release(self) -> None: ...


class FreeBudgets:
    """An implementation of `moyin.jobs.ports.JobBudgets` in which renders cost nothing."""

    async def reserve(
        self, caller: Identity, spec: JobSpec, done_indexes: Collection[int] = ()
    ) -> EmptyReservation:
        return EmptyReservation()


class InMemoryNamedFiles:
    """An implementation of `moyin.jobs.ports.NamedFiles` that keeps files in memory."""

    def __init__(self, files: Mapping[tuple[str, str], Artifact] | None = None) -> None:
        self.files = dict(files or {})

    async def find_in_texts(self, owner: str, texts: Collection[str]) -> Mapping[str, Artifact]:
        return {text: self.files[owner, text] for text in texts if (owner, text) in self.files}


class RecordingTelemetry:
    """Telemetry that records calls and breaker states in memory instead of in Ray's metrics.

    Attributes:
        calls: records of the finished calls, in order.
        states: states of each back end's circuit breaker, in order.
    """

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.states: dict[str, list[BreakerState]] = {}

    def record_call(self, call: CallRecord) -> None:
        self.calls.append(call)

    def record_breaker_state(self, backend: str, state: BreakerState) -> None:
        self.states.setdefault(backend, []).append(state)

    def forget_backend(self, backend: str) -> None:
        del self.states[backend]


class StaticAuthenticator:
    """An authenticator that accepts the keys in ``identities``, which tests may change."""

    def __init__(self, identities: Mapping[str, Identity]) -> None:
        self.identities = dict(identities)

    async def authenticate(self, credential: str) -> Identity:
        if credential not in self.identities:
            raise InvalidKey("the API key is not valid; use a key in `identities`")
        return self.identities[credential]

    async def authenticate_event_token(self, token: str) -> Identity:
        """Return the identity for an event token, which may read only one job.

        Raises `InvalidToken` if ``identities`` has no such token.
        """
        if token not in self.identities or self.identities[token].job is None:
            raise InvalidToken("the event token is not valid; use a token in `identities`")
        return self.identities[token]

    async def recheck(self, credentials: Mapping[str, Identity]) -> Mapping[str, Identity]:
        return {key: self.identities[key] for key in credentials if key in self.identities}
