"""Submits model calls as durable jobs if clients send ``Prefer: respond-async`` (RFC 7240)."""

from __future__ import annotations

from typing import Any

from moyin.access.gatekeeper import context
from moyin.access.gatekeeper.asgi import Scope, get_header
from moyin.client.gateway import GatewayClient
from moyin.domain.references import escape_references
from moyin.errors import MissingKey, MoyinError, RequestError, UnsupportedFeature
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.router import Router

# Headers that affect the answer or the choice of the back end, but cannot be part of a chat job.
_UNSUPPORTED_HEADERS = (
    b"anthropic-beta",
    b"x-moyin-quality",
    b"x-moyin-residency",
    b"x-moyin-timeout",
    b"x-moyin-usd-per-bad-answer",
)
# Members that are removed from the request of a job: a job stores the whole answer, so it does not
# stream, and the parsed request already contains the conversation of the previous response.
_REMOVED_MEMBERS = frozenset({"stream", "stream_options", "background", "previous_response_id"})


class JobSubmitter:
    """Submits model calls as jobs of the caller.

    The job's output is the answer in the client's protocol. ``Idempotency-Key`` has the same effect
    as for ``POST /jobs``.
    """

    def __init__(self, text_router: Router, gateway: GatewayClient) -> None:
        self._text_router = text_router
        self._gateway = gateway

    async def submit(
        self,
        codec: ProtocolCodec,
        call: ParsedRequest,
        scope: Scope,
        *,
        call_with_files: ParsedRequest | None = None,
        requested_by: str = "`Prefer: respond-async`",
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Submit the call as a job.

        Args:
            call_with_files: the call with its stored files, for validation only, because the job
                reads the files again; None if the call references no files.
            requested_by: the header or member by which the client chose a job, for error messages.

        Returns:
            Headers and body of the response, which has the status 202 as for ``POST /jobs``.

        Raises:
            RequestError: the call is invalid and would always fail.
            MoyinError: the jobs API rejected the job.
        """
        request_context = context(scope)
        identity = request_context.identity
        if identity is None:
            raise MissingKey(f"{requested_by} requires an API key: send one as a Bearer token")
        for name in _UNSUPPORTED_HEADERS:
            if get_header(scope, name) is not None:
                field = name.decode()
                raise UnsupportedFeature(
                    f"the header {field} cannot be combined with {requested_by}: send only one of them",
                    field=field,
                )
        routing_context = RoutingContext(
            request_id=request_context.request_id, owner=request_context.owner, headers=()
        )
        error = self._text_router.explain(codec, call_with_files or call, routing_context).error
        if isinstance(error, RequestError):
            raise error
        try:
            accepted_job = await self._gateway.submit_job(
                _to_job_spec(codec, call, scope["path"]),
                identity=identity,
                idempotency_key=get_header(scope, b"idempotency-key"),
            )
        except MoyinError as error:
            # The field's path begins with the job's member `request`, which the client did not
            # send.
            error.field = error.field and error.field.removeprefix("request.")
            raise
        headers = [
            (b"location", accepted_job.location.encode()),
            (b"preference-applied", b"respond-async"),
        ]
        if accepted_job.replayed:
            headers.append((b"idempotent-replayed", b"true"))
        return headers, accepted_job.body


def _to_job_spec(codec: ProtocolCodec, call: ParsedRequest, path: str) -> dict[str, Any]:
    request_members = {
        name: value for name, value in call.data.items() if name not in _REMOVED_MEMBERS
    }
    # A chat job must have messages.
    if call.derive_needs().embeddings or codec.path == "/completions":
        http_request = {"method": "POST", "path": path, "body": escape_references(request_members)}
        return {"kind": "http", "request": http_request}
    return {
        "kind": "chat",
        "protocol": codec.api_format.value,
        "request": escape_references(request_members),
    }
