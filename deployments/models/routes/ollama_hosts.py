"""Forwards calls that change an Ollama host's models, such as ``/api/pull``, to the host."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from moyin.access.gatekeeper import context
from moyin.domain.identity import OPERATOR
from moyin.errors import BackendError, InsufficientScope, InvalidRequest, ModelNotFound, MoyinError
from moyin.http.validation import parse_object, validate
from moyin.text.backends.ollama import OllamaBackend
from moyin.text.protocol.ollama import wire
from moyin.text.protocol.ollama.errors import render_error_event
from moyin.text.protocol.ollama.stream import JSON_LINES
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.router import Router

# The request header that names the host; the response has it, too.
HOST_HEADER = "x-moyin-backend"
_BLOB_PATH = "/ollama/api/blobs/"
_DESCRIPTION = (
    "For operators. The request goes to the Ollama host that the header `x-moyin-backend` or the "
    "beginning of the model's name (`gpu-1/llama3.2`) names; without either, to the only host."
)

# Clients of these calls use the status to detect the end of the call.
_CALLS_WITHOUT_BODY = frozenset({"/api/copy", "/api/delete"})
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")

_log = logging.getLogger(__name__)


def new_ollama_host_routes(
    text_router: Router, on_models_changed: Callable[[], None] | None
) -> APIRouter:
    """Return the routes that pull, push, create, copy and delete models on Ollama hosts.

    Args:
        on_models_changed: called when the models of a host changed.
    """
    router = APIRouter(prefix="/ollama/api", tags=["ollama"])
    hosts = _OllamaHosts(text_router, on_models_changed)

    @router.post(
        "/pull",
        summary="Pull a model to an Ollama host",
        description=f"{_DESCRIPTION} Without a host, a model that is there already succeeds at "
        "once, also for callers who are not operators.",
        response_model=None,
    )
    async def pull(request: Request) -> Response:
        body_members = parse_object(await request.body())
        body = validate(wire.PullBody, body_members)
        is_host_named = HOST_HEADER in request.headers or hosts.split_name(body.model_name)[0]
        if not is_host_named and _is_known_model(text_router, request, body.model_name):
            return _new_pulled_response(body)
        if not _is_operator(request):
            raise _new_scope_error("pull", f"no host has the model {body.model_name!r}, and ")
        return hosts.forward_request(request, "POST", "pull", body_members, "model")

    @router.post(
        "/push", summary="Push a model to a registry", description=_DESCRIPTION, response_model=None
    )
    async def push(request: Request) -> Response:
        _require_operator(request, "push")
        return hosts.forward_request(
            request, "POST", "push", await _read_json_body(request), "model"
        )

    @router.post(
        "/create",
        summary="Create a model on an Ollama host",
        description=_DESCRIPTION,
        response_model=None,
    )
    async def create(request: Request) -> Response:
        _require_operator(request, "create")
        return hosts.forward_request(
            request, "POST", "create", await _read_json_body(request), "model"
        )

    @router.post(
        "/copy",
        summary="Copy a model on an Ollama host",
        description=_DESCRIPTION,
        response_model=None,
    )
    async def copy(request: Request) -> Response:
        _require_operator(request, "copy")
        return hosts.forward_request(
            request, "POST", "copy", await _read_json_body(request), "source"
        )

    @router.delete(
        "/delete",
        summary="Delete a model of an Ollama host",
        description=_DESCRIPTION,
        response_model=None,
    )
    async def delete(request: Request) -> Response:
        _require_operator(request, "delete")
        return hosts.forward_request(
            request, "DELETE", "delete", await _read_json_body(request), "model"
        )

    @router.head("/blobs/{digest}", include_in_schema=False)
    async def has_blob(digest: str, request: Request) -> Response:
        _require_operator(request, "blobs")
        return hosts.forward_blob_request(request, digest)

    @router.post(
        "/blobs/{digest}",
        summary="Upload a file for a model to an Ollama host",
        description=f"{_DESCRIPTION} The file may be larger than other bodies.",
        response_model=None,
    )
    async def upload_blob(digest: str, request: Request) -> Response:
        _require_operator(request, "blobs")
        return hosts.forward_blob_request(request, digest)

    return router


def is_blob_upload(scope: Mapping[str, Any]) -> bool:
    """Return True if an operator uploads a blob, whose size only the Ollama host limits."""
    path = scope["path"].removeprefix("/v1")
    if not path.startswith(_BLOB_PATH):
        return False
    identity = scope["moyin"].identity
    return identity is not None and identity.has_scope(OPERATOR)


class _OllamaHosts:
    """Finds the Ollama host of a call and forwards the call to it."""

    def __init__(self, text_router: Router, on_models_changed: Callable[[], None] | None) -> None:
        self._text_router = text_router
        self._on_models_changed = on_models_changed

    def split_name(self, name: str) -> tuple[str | None, str]:
        """Split ``<host>/<model>`` into the host's name, None if missing, and the model's name."""
        host, separator, model_name = name.partition("/")
        return (
            (host, model_name)
            if separator and model_name and host in self._runtimes
            else (None, name)
        )

    def forward_request(
        self, request: Request, method: str, call: str, data: Mapping[str, Any], member: str
    ) -> Response:
        """Forward a call to an Ollama host, and return the host's response.

        The header `HOST_HEADER` names the host, or else the model's name begins with the host's.

        Args:
            call: the name of Ollama's call, which is its path below ``/api``, such as ``pull``.
            data: the members of the request's body.
            member: the name of the member that contains the model's name.
        """
        body = dict(data)
        # `name` is the older name of `model`.
        if member == "model" and (older_name := body.pop("name", None)) is not None:
            body["model"] = body.get("model") or older_name
        name = body.get(member)
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"{member}: must be the name of a model", field=member)
        host, body[member] = self.split_name(name)
        if "destination" in body:
            body["destination"] = self.split_name(str(body["destination"]))[1]
        runtime = self._choose_host(request, host)
        caller = context(request.scope).caller
        _log.info(
            "%s of tenant %s calls %s for the model %r on %s",
            caller.key_id or caller.user or "a caller", caller.owner, call, body[member],
            runtime.name,
        )  # fmt: skip
        return _HostResponse(
            runtime, method, f"/api/{call}", to_json(body), self._on_models_changed
        )

    def forward_blob_request(self, request: Request, digest: str) -> Response:
        """Forward a call about a blob to its host, and return the host's response."""
        if _DIGEST.fullmatch(digest) is None:
            raise InvalidRequest(
                "digest: must be 'sha256:' and 64 hexadecimal digits", field="digest"
            )
        context(request.scope).keeps_body = False
        runtime = self._choose_host(request, None)
        data = request.stream() if request.method == "POST" else None
        return _HostResponse(runtime, request.method, f"/api/blobs/{digest}", data)

    @property
    def _runtimes(self) -> dict[str, BackendRuntime]:
        return {
            name: runtime
            for name, runtime in self._text_router.fleet.runtimes.items()
            if isinstance(runtime.backend, OllamaBackend)
        }

    def _choose_host(self, request: Request, host_name: str | None) -> BackendRuntime:
        runtimes = self._runtimes
        name = request.headers.get(HOST_HEADER) or host_name
        if name is None and len(runtimes) == 1:
            return next(iter(runtimes.values()))
        if name is None or name not in runtimes:
            host_names = ", ".join(runtimes) or "none is configured"
            problem = "is missing" if name is None else f"there is no Ollama host {name!r}"
            raise InvalidRequest(
                f"{HOST_HEADER}: {problem}; name a host in this header or before the model's name, "
                f"as in 'host/model'; the hosts: {host_names}",
                field=HOST_HEADER,
            )
        return runtimes[name]


class _HostResponse(Response):
    """Forwards a request to an Ollama host, and streams the host's response to the client."""

    def __init__(
        self,
        runtime: BackendRuntime,
        method: str,
        path: str,
        data: bytes | AsyncIterable[bytes] | None,
        on_models_changed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._runtime = runtime
        self._method = method
        self._path = path
        self._data = data
        self._on_models_changed = on_models_changed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        backend = self._runtime.backend
        assert isinstance(backend, OllamaBackend), "only Ollama hosts have these calls"
        async with backend.forward_request(self._method, self._path, self._data) as response:
            headers = [(HOST_HEADER.encode(), self._runtime.name.encode())]
            if response.content_type is not None:
                headers.append((b"content-type", response.content_type.encode("latin-1")))
            if self._path in _CALLS_WITHOUT_BODY:
                await self._refresh_models()
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
            try:
                async for chunk in response.pieces:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except BackendError as error:
                event = render_error_event(error, context(scope).request_id)
                await send({"type": "http.response.body", "body": event, "more_body": True})
        if self._path not in _CALLS_WITHOUT_BODY:
            await self._refresh_models()
        await send({"type": "http.response.body", "body": b""})

    async def _refresh_models(self) -> None:
        """Read the host's models again, before the client sees the end of the call."""
        if self._on_models_changed is None or self._runtime.refresh_models is None:
            return
        try:
            if await self._runtime.refresh_models():
                self._on_models_changed()
        except MoyinError:
            # The periodic check will find the change.
            return


async def _read_json_body(request: Request) -> Mapping[str, Any]:
    return parse_object(await request.body())


def _is_operator(request: Request) -> bool:
    identity = context(request.scope).identity
    return identity is not None and identity.has_scope(OPERATOR)


def _require_operator(request: Request, call: str) -> None:
    if not _is_operator(request):
        raise _new_scope_error(call, "")


def _new_scope_error(call: str, reason: str) -> InsufficientScope:
    return InsufficientScope(
        f"/api/{call}: {reason}only keys with the scope {OPERATOR} may change the models of a host",
        details={"scope": OPERATOR},
    )


def _is_known_model(text_router: Router, request: Request, name: str) -> bool:
    """Return True if the caller may use a model or alias of this name."""
    try:
        return bool(text_router.fleet.find_allowed_deployments(name, context(request.scope).owner))
    except ModelNotFound:
        return False


def _new_pulled_response(body: wire.PullBody) -> Response:
    success_line = b'{"status":"success"}'
    if body.stream is False:
        return Response(success_line, media_type="application/json")
    return Response(
        b'{"status":"pulling manifest"}\n' + success_line + b"\n", media_type=JSON_LINES.decode()
    )
