"""Chooses the lines for a back end's batch API, and translates them and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from moyin.domain.chat import ChatRequest
from moyin.domain.money import Usage
from moyin.domain.text_batch import LineResult, TextBatch, get_line_request_id
from moyin.errors import BackendRejected, MoyinError
from moyin.http.problems import ErrorBody
from moyin.store.usage import UsageEntry
from moyin.text.backends.batches import BatchApi, RemoteOutcome, RemoteResult
from moyin.text.prompt_files import FILE_ID_MARKER
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec, OpenAIEmbeddingsCodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.compiled_route import RouteTarget
from moyin.text.routing.ledger import build_usage_entry, today
from moyin.text.routing.omission import omit_unusable_effort
from moyin.text.routing.router import Router

# The endpoints whose lines can be run natively. Responses would have to be stored for continuation.
_CODECS: Mapping[str, ProtocolCodec] = {
    "/v1/chat/completions": OpenAICodec(),
    "/v1/embeddings": OpenAIEmbeddingsCodec(),
    "/v1/messages": AnthropicCodec(),
}
_REJECTED_STATUSES = frozenset({400, 413, 422})
_MAX_MESSAGE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeLine:
    """A line translated to a request of a back end's batch API, without the request's id."""

    path: str
    body: Mapping[str, Any]


class NativeLines:
    """Translates the lines of batches for back ends with a batch API, and the results back.

    Args:
        render_error: called with an error, the request id and the path of the call; returns the
            error in the protocol of that path.
    """

    def __init__(
        self, router: Router, render_error: Callable[[MoyinError, str, str], ErrorBody]
    ) -> None:
        self._router = router
        self._render_error = render_error

    @property
    def has_batch_api(self) -> bool:
        """True if a back end has a batch API."""
        runtimes = self._router.fleet.runtimes.values()
        return any(runtime.batch_api is not None for runtime in runtimes)

    def get_api(self, backend: str) -> BatchApi | None:
        """Return the batch API of a back end; None if the current configuration has none for it."""
        runtime = self._router.fleet.runtimes.get(backend)
        return None if runtime is None else runtime.batch_api

    def choose_backend(
        self, batch: TextBatch, body: bytes
    ) -> tuple[RouteTarget, NativeLine] | None:
        """Choose the back end whose batch API runs a line, and translate the line for it.

        An alias is resolved as for a single call.

        Returns:
            The chosen target and the translated line; None if a single call must run the line.
        """
        codec = _CODECS.get(batch.endpoint)
        if codec is None or FILE_ID_MARKER in body:
            return None
        try:
            request = codec.parse(body)
            target = self._choose_target(batch, codec, request)
            if target is None:
                return None
            api = target.runtime.batch_api
            assert api is not None
            return target, _encode_line(codec, request, target.deployment, api)
        except MoyinError:
            # A single call reports the error, or another back end answers it.
            return None

    def encode_line(
        self, batch: TextBatch, body: bytes, backend: str, model: str
    ) -> NativeLine | None:
        """Translate a line for the back end and model that `choose_backend` has chosen for it.

        Returns:
            The translated line; None if the line can no longer be translated for them.
        """
        deployment, api = self.find_deployment(backend, model), self.get_api(backend)
        if deployment is None or api is None:
            return None
        codec = _CODECS[batch.endpoint]
        try:
            return _encode_line(codec, codec.parse(body), deployment, api)
        except MoyinError:
            return None

    def find_deployment(self, backend: str, model: str) -> ModelDeployment | None:
        """Return the deployment of a model on a back end if it has batch prices; else None."""
        for deployment in self._router.fleet.catalog.deployments:
            if deployment.backend == backend and deployment.model.name == model:
                return None if deployment.batch_tariff is None else deployment
        return None

    def decode_result(
        self,
        batch: TextBatch,
        line_number: int,
        body: bytes,
        remote_result: RemoteResult,
        deployment: ModelDeployment,
        api: BatchApi,
    ) -> tuple[LineResult, tuple[UsageEntry, ...]] | None:
        """Translate a back end's result to the result of a line and its ledger entries.

        Args:
            line_number: the number of the line.
            body: the request that the line contains.

        Returns:
            The result and the entries, at the batch price; None if a single call must run the line,
            because the back end failed.
        """
        codec = _CODECS[batch.endpoint]
        if remote_result.outcome is RemoteOutcome.UNANSWERED:
            return None
        if remote_result.outcome is RemoteOutcome.FAILED:
            if remote_result.status not in _REJECTED_STATUSES:
                return None
            error = BackendRejected(
                f"the back end refused the request: {_read_message(remote_result)}"
            )
            return self._build_failed_result(batch, line_number, error), ()
        request = codec.parse(body)
        usage: Usage | None = None
        try:
            if deployment.api_format is codec.api_format:
                answer_body, usage = _read_forwarded_answer(codec, remote_result.body)
            else:
                response = api.read_chat(remote_result.body)
                # The answer is billed even if the client's protocol cannot express it.
                usage = response.usage
                answer_body = request.encode_response(response)
        except MoyinError as translation_error:
            failed_result = self._build_failed_result(batch, line_number, translation_error)
            if usage is None:
                return failed_result, ()
            ledger_entry = _build_entry(
                batch, line_number, request.model, deployment, usage, translation_error.code
            )
            return failed_result, (ledger_entry,)
        ledger_entry = _build_entry(batch, line_number, request.model, deployment, usage)
        return LineResult(number=line_number, http_status=200, body=answer_body), (ledger_entry,)

    def _build_failed_result(
        self, batch: TextBatch, line_number: int, error: MoyinError
    ) -> LineResult:
        request_id = get_line_request_id(batch.id, line_number)
        error_body = self._render_error(error, request_id, batch.endpoint)
        return LineResult(
            number=line_number,
            http_status=error_body.status,
            body=error_body.body,
            error_code=error.code,
        )

    def _choose_target(
        self, batch: TextBatch, codec: ProtocolCodec, request: ParsedRequest
    ) -> RouteTarget | None:
        context = RoutingContext(
            request_id=batch.id, owner=batch.owner, headers=(), key_id=batch.key_id
        )
        explanation = self._router.explain(codec, request, context)
        candidates = [candidate.target for candidate in explanation.candidates]
        # Only single calls can drop the members that the operator allows to be omitted.
        if not candidates or explanation.omitted:
            return None
        # If several back ends offer the model, the cheapest batch price decides.
        if len({target.model.name for target in candidates}) > 1:
            candidates = candidates[:1]
        for target in candidates:
            api, path = target.runtime.batch_api, codec.path
            is_forwarded = not target.needs_translation
            if api is None or target.deployment.batch_tariff is None:
                continue
            if is_forwarded and not api.supports(path):
                continue
            if not is_forwarded and explanation.needs.embeddings:
                continue
            if request.picture_urls and not target.runtime.backend.fetches_pictures:
                continue
            return target
        return None


def _encode_line(
    codec: ProtocolCodec, request: ParsedRequest, deployment: ModelDeployment, api: BatchApi
) -> NativeLine:
    upstream_model = deployment.model.upstream
    if deployment.api_format is codec.api_format:
        return NativeLine(path=codec.path, body={**request.data, "model": upstream_model})
    chat_request = request.to_domain(upstream_model)
    assert isinstance(chat_request, ChatRequest), "embeddings are never translated for batches"
    chat_request = omit_unusable_effort(chat_request, request.derive_needs(), deployment.model)
    return NativeLine(path=api.chat_path, body=api.encode_chat(chat_request))


def _build_entry(
    batch: TextBatch,
    line_number: int,
    requested_model: str,
    deployment: ModelDeployment,
    usage: Usage,
    error: str | None = None,
) -> UsageEntry:
    """Return the ledger entry of a line that a back end has charged, at the batch price.

    Args:
        line_number: the number of the line.
        error: the code of the error if the charged answer is unusable; else None.
    """
    assert deployment.batch_tariff is not None, "find_deployment returns only models with one"
    context = RoutingContext(
        request_id=get_line_request_id(batch.id, line_number),
        owner=batch.owner,
        headers=(),
        key_id=batch.key_id,
    )
    return build_usage_entry(
        context,
        requested_model,
        deployment.backend,
        deployment.model.name,
        usage,
        pico_cost=deployment.batch_tariff.get_price_on(today()).compute_pico_cost(usage),
        error=error,
    )


def _read_forwarded_answer(codec: ProtocolCodec, body: Mapping[str, Any]) -> tuple[bytes, Usage]:
    """Return the bytes and the usage of an answer that is already in the client's format."""
    answer = dict(body)
    codec.require_answer_member(answer)
    return codec.add_missing_members(to_json(answer), answer, None), codec.read_usage(answer)


def _read_message(remote_result: RemoteResult) -> str:
    error = remote_result.body.get("error")
    message = error.get("message") if isinstance(error, Mapping) else None
    return str(message or f"HTTP status {remote_result.status}")[:_MAX_MESSAGE]
