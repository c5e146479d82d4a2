"""Calls that clients do not want to wait for: a durable job makes them, with the owner's rights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobSpec, Step, StepKind
from moyin.errors import UnsupportedFeature
from moyin.jobs.protocol.paths import check_path
from moyin.jobs.protocol.translate import job_body
from moyin.jobs.service import JobService
from moyin.store.blobs import BlobStore

__all__ = ["DeferredCalls"]

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
# About the connection that the client has now, or said by the door anew when the job calls.
_DROPPED = frozenset({"content-length", "idempotency-key", "prefer", "via", "x-request-id"})
_DROPPED_PREFIX = "x-forwarded-"


class DeferredCalls:
    """Makes an http job of a request, byte for byte."""

    def __init__(self, service: JobService, blobs: BlobStore) -> None:
        self._service = service
        self._blobs = blobs

    async def submit(
        self,
        identity: Identity,
        *,
        method: str,
        path: str,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        idempotency_key: str | None,
    ) -> tuple[Job, bool]:
        """The job that will make the call, and whether it is new.

        Raises:
            UnsupportedFeature: a method whose answer nobody could wait for.
            InvalidRequest: the path is none that a job may call.
            IdempotencyMismatch: the key was used for another request.
        """
        if method not in _METHODS:
            raise UnsupportedFeature(f"{method} can't be answered by a job", field="method")
        check_path(path, field="path")
        payload = {
            "method": method,
            "path": _literal(path),
            "headers": {name: _literal(value) for name, value in headers if _kept(name)},
            "body": None,
            # By reference: a body may be of any size and need not be text.
            "blob": await self._blobs.put(body) if body else None,
        }
        spec = JobSpec(kind=StepKind.HTTP.value, steps=(Step(kind=StepKind.HTTP, payload=payload),))
        return await self._service.submit(identity, spec, idempotency_key=idempotency_key)

    def is_job(self, identity: Identity) -> bool:
        return identity.service == "jobs"

    def described(self, job: Job) -> dict[str, Any]:
        return job_body(job).model_dump(mode="json")


def _kept(name: str) -> bool:
    return name not in _DROPPED and not name.startswith(_DROPPED_PREFIX)


def _literal(text: str) -> str:
    """``text`` as a step's payload that is not read as a reference."""
    return text.replace("${", "$${")
