"""Turns a proxied request into a job that sends it later (``Prefer: respond-async``)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from moyin.access.gatekeeper.asgi import Receive, Scope, Send, get_header
from moyin.access.gatekeeper.context import context
from moyin.domain.identity import Identity
from moyin.domain.job import Job
from moyin.http.headers import prefers_async_response
from moyin.proxy.forward import receive_body
from moyin.proxy.headers import build_request_headers


class Deferral(Protocol):
    """Creates the jobs that send deferred requests; `moyin.jobs.deferred` implements it."""

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
        """Create a job that will send the request to ``path``, which includes the query.

        Args:
            headers: the headers of the request, as pairs of name and value.

        Returns:
            The job, and True if it is new. It is not new if the idempotency key was used before.
        """
        ...

    def is_called_by_job(self, identity: Identity) -> bool:
        """Return True if the caller is itself a job, whose requests must not be deferred again."""
        ...

    def render_job(self, job: Job) -> dict[str, Any]:
        """Return the body of the response that describes the job to its owner."""
        ...


async def respond_with_job(
    deferral: Deferral, scope: Scope, receive: Receive, send: Send, path: str
) -> None:
    """Respond with status 202 and the job that will call ``path`` on the caller's behalf."""
    request = context(scope)
    query = scope["query_string"].decode("latin-1")
    job, is_new = await deferral.submit(
        request.caller,
        method=scope["method"],
        path=f"{path}?{query}" if query else path,
        headers=build_request_headers(
            scope,
            request.request_id,
            address="",
            prefix=None,
            pass_credentials=False,
            identity_headers={},
        ),
        body=await receive_body(receive),
        idempotency_key=get_header(scope, b"idempotency-key"),
    )
    body = json.dumps(deferral.render_job(job)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"location", f"/jobs/{job.id}".encode()),
    ]
    if prefers_async_response(scope["headers"]):
        headers.append((b"preference-applied", b"respond-async"))
    if not is_new:
        headers.append((b"idempotent-replayed", b"true"))
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})
