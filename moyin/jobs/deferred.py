"""Turns requests with ``Prefer: respond-async`` into jobs that send the requests later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobSpec, Step, StepKind
from moyin.domain.references import escape_references
from moyin.errors import UnsupportedFeature
from moyin.jobs.protocol.response import render_job
from moyin.jobs.protocol.step_requests import check_step_path
from moyin.jobs.service import JobService
from moyin.store.blobs import BlobStore

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
# Headers that are not forwarded: those about the client's own connection, and those that the
# gateway sets for the job's request.
_DROPPED = frozenset({"content-length", "idempotency-key", "prefer", "via", "x-request-id"})
_DROPPED_PREFIX = "x-forwarded-"


class DeferredCalls:
    """Creates jobs that send a client's request later, unchanged and with the client's rights."""

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
        """Submit the job that will send the request.

        Returns:
            The job, and True unless an earlier request with ``idempotency_key`` created it.

        Raises:
            UnsupportedFeature: a job cannot send this method.
            InvalidRequest: a job must not call this path.
            IdempotencyMismatch: ``idempotency_key`` was used for another request.
        """
        if method not in _METHODS:
            raise UnsupportedFeature(
                f"a job cannot send the method {method}: it must be one of "
                f"{', '.join(sorted(_METHODS))}",
                field="method",
            )
        check_step_path(path, field="path")
        payload = {
            "method": method,
            "path": escape_references(path),
            "headers": {
                name: escape_references(value) for name, value in headers if _is_forwarded(name)
            },
            "body": None,
            # The body is stored as a blob, because it may be large and need not be text.
            "blob": await self._blobs.put(body) if body else None,
        }
        spec = JobSpec(kind=StepKind.HTTP.value, steps=(Step(kind=StepKind.HTTP, payload=payload),))
        return await self._service.submit(identity, spec, idempotency_key=idempotency_key)

    def is_called_by_job(self, identity: Identity) -> bool:
        """Return True if the caller is itself a job, whose requests must not be deferred."""
        return identity.service == "jobs"

    def render_job(self, job: Job) -> dict[str, Any]:
        """Return the job as JSON members, as the jobs API shows it to its owner."""
        return render_job(job).model_dump(mode="json")


def _is_forwarded(name: str) -> bool:
    return name not in _DROPPED and not name.startswith(_DROPPED_PREFIX)
