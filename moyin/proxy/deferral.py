"""Calls whose client does not wait: a durable job makes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from moyin.access.gatekeeper.asgi import Receive, Scope, Send, header
from moyin.access.gatekeeper.context import context
from moyin.domain.identity import Identity
from moyin.domain.job import Job
from moyin.proxy.body import whole_body
from moyin.proxy.headers import request_headers

__all__ = ["Deferral", "defer", "prefers_job"]


class Deferral(Protocol):
    """Makes a durable job of a call."""

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
        """The job that will call ``path`` (with its query) again; and whether it is new."""
        ...

    def is_job(self, identity: Identity) -> bool:
        """Whether it is a job that calls: its own call must be answered here and now."""
        ...

    def described(self, job: Job) -> dict[str, Any]:
        """The job as its owner sees it."""
        ...


async def defer(deferral: Deferral, scope: Scope, receive: Receive, send: Send, path: str) -> None:
    """Answer 202 with the job that will call ``path`` in the caller's stead."""
    caller = context(scope)
    query = scope["query_string"].decode("latin-1")
    job, created = await deferral.submit(
        caller.caller,
        method=scope["method"],
        path=f"{path}?{query}" if query else path,
        headers=request_headers(
            scope,
            request_id=caller.request_id,
            address="",
            prefix=None,
            pass_credentials=False,
            identity={},
        ),
        body=await whole_body(receive),
        idempotency_key=header(scope, b"idempotency-key"),
    )
    body = json.dumps(deferral.described(job)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"location", f"/jobs/{job.id}".encode()),
    ]
    if prefers_job(scope):
        headers.append((b"preference-applied", b"respond-async"))
    if not created:
        headers.append((b"idempotent-replayed", b"true"))
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def prefers_job(scope: Scope) -> bool:
    """Whether the client sent ``Prefer: respond-async`` (RFC 7240)."""
    return any(
        preference.strip().partition(";")[0].strip().lower() == "respond-async"
        for name, value in scope["headers"]
        if name == b"prefer"
        for preference in value.decode("latin-1").split(",")
    )
