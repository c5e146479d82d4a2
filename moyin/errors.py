"""Defines every error that Moyin raises on purpose.

Each error has a stable ``code``, and the attribute ``retryable`` says if a retry can help. It has
no HTTP status: ``moyin.http.problems`` maps types to statuses, and each protocol renders its own
body. Messages may reach clients, so they must not contain data of other tenants or of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MoyinError(Exception):
    """The base class of all errors.

    Args:
        message: a sentence for the client: what is wrong, and what would be right.
        field: the path of the invalid field, such as ``messages.0.content``.
        details: extra members of the error body, JSON-serialisable.
        retry_after: seconds after which a retry may succeed.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.details: Mapping[str, Any] = details or {}
        self.retry_after = retry_after


class RequestError(MoyinError):
    code = "bad_request"  # the request is wrong


class InvalidJson(RequestError):
    code = "invalid_json"


class InvalidRequest(RequestError):
    code = "invalid_request"  # the error names the field


class PreviousResponseNotFound(InvalidRequest):
    code = "previous_response_not_found"


class EditorGraphFormat(InvalidRequest):
    code = "editor_format"  # the graph is in the format that ComfyUI's editor saves


class InvalidGraph(RequestError):
    """Reports an invalid graph, with ComfyUI's ``{"error": …, "node_errors": …}`` in ``details``."""

    code = "invalid_graph"


class GraphTooLarge(RequestError):
    """Reports a graph that exceeds a bound; ``details`` has the ``bound``, its ``max`` and ``actual``."""

    code = "graph_too_large"


class PromptIdTaken(RequestError):
    code = "prompt_id_taken"  # another prompt has the id that the client chose


class InputNotFound(RequestError):
    """Reports an input file that the caller does not have.

    If the node and the input are known, ``details`` names them in ComfyUI's format, as in
    `InvalidGraph`.
    """

    code = "input_not_found"


class WeakPassword(RequestError):
    code = "weak_password"  # the password is easy to guess


class NodeNotAllowed(RequestError):
    """Reports a node class that the render pool or the caller's limits forbid.

    ``details`` names the node in ComfyUI's format, as in `InvalidGraph`.
    """

    code = "node_not_allowed"


class BodyTooLarge(RequestError):
    code = "body_too_large"


class InvalidContentEncoding(RequestError):
    code = "invalid_content_encoding"  # the body is not in the encoding that its header names


class UnsupportedContentEncoding(RequestError):
    """Reports a body in an encoding that Moyin cannot decode.

    ``details`` lists the ``accepted`` encodings.
    """

    code = "unsupported_content_encoding"


class PictureTooLarge(RequestError):
    """Reports a picture that is too large to decode.

    ``details`` holds the exceeded bound (``max_pixels``, ``max_memory_mib``, ``max_bytes`` or
    ``max_seconds``) and those of the picture's ``width``, ``height`` and ``bytes`` that are known.
    """

    code = "picture_too_large"


class ArchiveTooLarge(RequestError):
    """Reports files that are too many or too large for one archive.

    ``details`` holds the exceeded bound: ``max_files`` or ``max_bytes``.
    """

    code = "archive_too_large"


class UserStorageFull(RequestError):
    code = "no_room_left"  # the user may store no more files of ComfyUI's frontend


class FileStorageFull(RequestError):
    code = "file_storage_full"  # the tenant may store no more files


class BodyTooSlow(RequestError):
    code = "body_too_slow"  # the client sent the body too slowly


class UnsupportedFeature(RequestError):
    code = "unsupported_feature"  # the error names the field


class SchemaTooLarge(UnsupportedFeature):
    """Reports a JSON schema that is too large for a local model server.

    ``details`` holds the name of the exceeded ``bound`` and its ``limit``.
    """

    code = "schema_too_large"


class AddressNotAllowed(RequestError):
    code = "address_refused"  # a webhook leads into a private network


class ContextTooLong(RequestError):
    code = "context_too_long"  # the prompt exceeds the model's context


class QualityUnreachable(RequestError):
    """Reports that no model reaches the requested quality.

    ``details`` holds the ``best`` model that can answer, and its ``p_good``.
    """

    code = "quality_unreachable"


class AccessError(MoyinError):
    code = "access_denied"  # the caller may not make the request


class MissingKey(AccessError):
    code = "missing_api_key"


class InvalidKey(AccessError):
    code = "invalid_api_key"


class InvalidCredentials(AccessError):
    code = "invalid_credentials"  # the email and password, or the sign-in, are wrong


class InvalidToken(AccessError):
    code = "invalid_token"  # a refresh or reset token is wrong


class InsufficientScope(AccessError):
    code = "insufficient_scope"  # details name the missing scope


class PriorityNotAllowed(AccessError):
    code = "priority_not_allowed"  # details name the best priority class that the caller may use


class PathNotAllowed(AccessError):
    code = "path_refused"  # the path lies outside of the caller's folder


class CrossSiteRequest(AccessError):
    code = "cross_site_request"  # the page of another site sent the request, with the user's cookie


class ModelNotAllowed(AccessError):
    code = "model_not_allowed"  # the tenant's policy or data residency excludes the model


class LimitExceeded(MoyinError):
    """Reports an exceeded limit; ``headers`` holds the ``RateLimit-*`` headers of the response."""

    code = "limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)
        self.headers: Mapping[str, str] = headers or {}


class RateLimited(LimitExceeded):
    code = "rate_limit_exceeded"
    retryable = True


class TooManyJobs(RateLimited):
    code = "too_many_jobs"  # too many jobs of the caller are queued or running


class TooManyBatches(RateLimited):
    code = "too_many_batches"  # too many batches of the tenant are open


class TooManyAttempts(LimitExceeded):
    code = "too_many_attempts"  # too many attempts to sign in
    retryable = True


class BudgetExceeded(LimitExceeded):
    code = "budget_exceeded"  # the budget of the day or month is spent


class NotFound(MoyinError):
    code = "not_found"


class RouteNotFound(NotFound):
    code = "route_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class OperationNotConfigured(NotFound):
    code = "operation_not_configured"  # no model has the ability that the call needs


class JobNotFound(NotFound):
    code = "job_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"  # the ledger has no request with this id


class ResponseNotFound(NotFound):
    code = "response_not_found"


class StoredFileNotFound(NotFound):
    code = "stored_file_not_found"  # a file of the tenant, such as the input of a batch


class BatchNotFound(NotFound):
    code = "batch_not_found"


class UserFileNotFound(NotFound):
    code = "file_not_found"  # a file of ComfyUI's frontend


class TemplateNotFound(NotFound):
    code = "template_not_found"


class ArtifactNotFound(NotFound):
    code = "artifact_not_found"


class PreviewNotFound(NotFound):
    code = "preview_not_found"


class ContentNotFound(NotFound):
    code = "content_not_found"  # the caller has no file with this hash


class Conflict(MoyinError):
    code = "conflict"


class FileExists(Conflict):
    code = "file_exists"


class NameTaken(Conflict):
    code = "name_taken"  # an email, or the name of an organisation


class FeedbackAlreadyGiven(Conflict):
    code = "feedback_given"  # the request has another score


class JobFinished(Conflict):
    code = "job_finished"


class JobNotFinished(Conflict):
    code = "job_not_finished"


class BatchFinished(Conflict):
    code = "batch_finished"


class BatchNotFinished(Conflict):
    code = "batch_not_finished"


class ContentMismatch(Conflict):
    code = "content_mismatch"  # the bytes do not match their hash


class ArtifactInUse(Conflict):
    code = "artifact_in_use"  # the artifact is the output of a job


class IdempotencyMismatch(Conflict):
    code = "idempotency_key_reused"  # the key belongs to another request


class Unavailable(MoyinError):
    code = "unavailable"  # may carry `retry_after`
    retryable = True


class Overloaded(Unavailable):
    code = "overloaded"


class ServiceUnavailable(Unavailable):
    code = "service_unavailable"


class BackendError(MoyinError):
    """Reports that a back end failed; ``may_be_billed`` is True if it probably read the prompt."""

    code = "backend_error"
    may_be_billed = False


class BackendUnavailable(BackendError):
    code = "backend_unavailable"
    retryable = True

    def __init__(self, message: str, *, may_be_billed: bool = False, **options: Any) -> None:
        super().__init__(message, **options)
        self.may_be_billed = may_be_billed


class BackendKeyRejected(BackendUnavailable):
    code = "backend_key_refused"  # the back end rejected Moyin's key, not the client's
    retryable = False


class BackendTimeout(BackendError):
    code = "backend_timeout"
    retryable = True
    may_be_billed = True


class BackendRejected(BackendError):
    """Reports that the back end rejected the request as invalid.

    ``reason`` is the back end's own message; None if it gave none.
    """

    code = "backend_rejected"

    def __init__(self, message: str, *, reason: str | None = None, **options: Any) -> None:
        super().__init__(message, **options)
        self.reason = reason


class InvalidToolCall(BackendError):
    """Reports a model's tool call with arguments that the client's protocol cannot express.

    ``details`` holds the ``tool`` and the ``arguments`` as the model wrote them.
    """

    code = "invalid_tool_call"
    may_be_billed = True


class StreamInterrupted(BackendError):
    code = "stream_interrupted"  # the stream broke after its first byte
    may_be_billed = True


class StepError(MoyinError):
    code = "step_error"  # a step of a job failed


class RenderFailed(StepError):
    code = "render_failed"  # a node raised an error


class OutOfMemory(RenderFailed):
    """Reports that a graphics card had too little memory for a render.

    ``details["pool"]`` names a render pool with more memory, if there is one.
    """

    code = "out_of_memory"


class ResourceLimitExceeded(RenderFailed):
    """Reports that a render used more memory, disk space or processes than its pool allows.

    ``details`` holds the exceeded ``bound``, which is a setting of the pool, and its ``limit``.
    """

    code = "resource_limit"


class PoolNotAllowed(StepError):
    code = "pool_not_allowed"  # the render pool serves other tenants


class RenderPoisoned(StepError):
    code = "render_poisoned"  # every ComfyUI process that tried the prompt died


class WorkerLost(StepError):
    code = "worker_lost"  # the process that ran the step died
    retryable = True


class DeadlineExceeded(StepError):
    code = "deadline_exceeded"


class StepFailed(StepError):
    code = "step_failed"


class StackError(MoyinError):
    code = "stack_error"  # `moyin up` and the stack; the message is for the operator
