"""Defines every error that Moyin raises on purpose.

::

    MoyinError
    ├── RequestError                the request is wrong
    │   ├── InvalidJson             invalid_json
    │   ├── InvalidRequest          invalid_request            (names the field)
    │   │   └── EditorGraphFormat   editor_format              (the format that ComfyUI's editor saves)
    │   ├── InvalidGraph            invalid_graph              (carries ComfyUI's own body)
    │   ├── PromptIdTaken           prompt_id_taken            (another prompt has the client's id)
    │   ├── InputNotFound           input_not_found            (the caller has no such input file)
    │   ├── NodeNotAllowed          node_not_allowed           (by the pool or by the caller's limits)
    │   ├── WeakPassword            weak_password              (easy to guess; names the field)
    │   ├── BodyTooLarge            body_too_large
    │   ├── PictureTooLarge         picture_too_large          (to decode; details hold the bound)
    │   ├── UserStorageFull         no_room_left               (for files of ComfyUI's frontend)
    │   ├── BodyTooSlow             body_too_slow
    │   ├── UnsupportedFeature      unsupported_feature        (names the field)
    │   │   └── SchemaTooLarge      schema_too_large           (for a local server; details hold the bound)
    │   ├── AddressNotAllowed       address_refused            (a webhook into a private network)
    │   ├── QualityUnreachable      quality_unreachable        (no model reaches the requested quality)
    │   └── ContextTooLong          context_too_long
    ├── AccessError
    │   ├── MissingKey              missing_api_key
    │   ├── InvalidKey              invalid_api_key
    │   ├── InvalidCredentials      invalid_credentials        (email and password, or a sign-in)
    │   ├── InvalidToken            invalid_token              (refresh and reset tokens)
    │   ├── InsufficientScope       insufficient_scope         (details name the scope)
    │   ├── PriorityNotAllowed      priority_not_allowed       (names the field; details name the best class)
    │   ├── PathNotAllowed          path_refused               (outside the caller's folder)
    │   ├── CrossSiteRequest        cross_site_request         (another site's page, with our cookie)
    │   └── ModelNotAllowed         model_not_allowed          (by the tenant's policy or data residency)
    ├── LimitExceeded               carries RateLimit-* headers
    │   ├── RateLimited             rate_limit_exceeded        (retryable, retry_after in seconds)
    │   │   └── TooManyJobs         too_many_jobs              (queued or running)
    │   ├── TooManyAttempts         too_many_attempts          (to sign in; retryable)
    │   └── BudgetExceeded          budget_exceeded            (until the day or the month ends)
    ├── NotFound
    │   ├── RouteNotFound           route_not_found
    │   ├── ModelNotFound           model_not_found
    │   ├── JobNotFound             job_not_found
    │   ├── RequestNotFound         request_not_found          (in the ledger)
    │   ├── UserFileNotFound        file_not_found             (of ComfyUI's frontend)
    │   ├── TemplateNotFound        template_not_found
    │   ├── ArtifactNotFound        artifact_not_found
    │   └── ContentNotFound         content_not_found          (the caller has no file with this hash)
    ├── Conflict
    │   ├── FileExists              file_exists
    │   ├── NameTaken               name_taken                 (an email, an organisation's name)
    │   ├── FeedbackAlreadyGiven    feedback_given             (the request has another score)
    │   ├── JobFinished             job_finished
    │   ├── JobNotFinished          job_not_finished
    │   ├── ContentMismatch         content_mismatch           (the bytes do not match their hash)
    │   ├── ArtifactInUse           artifact_in_use            (it is a job's output)
    │   └── IdempotencyMismatch     idempotency_key_reused
    ├── Unavailable                 retryable; may carry retry_after in seconds
    │   ├── Overloaded              overloaded
    │   └── ServiceUnavailable      service_unavailable
    ├── BackendError                a model back end failed
    │   ├── BackendUnavailable      backend_unavailable        (retryable)
    │   │   └── BackendKeyRejected  backend_key_refused        (Moyin's key, not the client's)
    │   ├── BackendTimeout          backend_timeout            (retryable)
    │   ├── BackendRejected         backend_rejected           (the back end calls the request wrong)
    │   ├── InvalidToolCall         invalid_tool_call          (the model's arguments; details hold them)
    │   └── StreamInterrupted       stream_interrupted         (after the first byte)
    ├── StepError                   a step of a job failed
    │   ├── PoolNotAllowed          pool_not_allowed           (the pool serves other tenants)
    │   ├── RenderFailed            render_failed              (a node raised an error)
    │   │   └── OutOfMemory         out_of_memory              (of the card; details may name a pool)
    │   ├── RenderPoisoned          render_poisoned            (every ComfyUI that tried it died)
    │   ├── WorkerLost              worker_lost                (retryable: the process died)
    │   ├── DeadlineExceeded        deadline_exceeded
    │   └── StepFailed              step_failed
    └── StackError                  `moyin up` and the stack; the message is for the operator

Each error has a stable ``code`` and states if a retry can help. It has no HTTP status:
``moyin.http.problems`` maps types to statuses, and each protocol renders its own body.
Messages may reach clients, so they must not contain data of other tenants or of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MoyinError(Exception):
    """The base of all errors.

    Args:
        message: a sentence for the client that states what is wrong and what would be right.
        field: the path of the offending field, such as ``messages.0.content``.
        details: extra members for the error body, JSON-serialisable.
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
    code = "bad_request"


class InvalidJson(RequestError):
    code = "invalid_json"


class InvalidRequest(RequestError):
    code = "invalid_request"


class PreviousResponseNotFound(InvalidRequest):
    code = "previous_response_not_found"


class EditorGraphFormat(InvalidRequest):
    code = "editor_format"


class InvalidGraph(RequestError):
    """Carries ComfyUI's validation body ``{"error": …, "node_errors": …}`` in ``details``."""

    code = "invalid_graph"


class PromptIdTaken(RequestError):
    code = "prompt_id_taken"


class InputNotFound(RequestError):
    """Carries a body like that of `InvalidGraph` in ``details``, if it can name node and input."""

    code = "input_not_found"


class WeakPassword(RequestError):
    code = "weak_password"


class NodeNotAllowed(RequestError):
    """Carries a body like that of `InvalidGraph` in ``details``."""

    code = "node_not_allowed"


class BodyTooLarge(RequestError):
    code = "body_too_large"


class PictureTooLarge(RequestError):
    """Carries the exceeded bound and the picture's known size in ``details``.

    The bound is ``max_pixels``, ``max_memory_mib``, ``max_bytes`` or ``max_seconds``; the size is
    ``width``, ``height`` and ``bytes``.
    """

    code = "picture_too_large"


class UserStorageFull(RequestError):
    code = "no_room_left"


class BodyTooSlow(RequestError):
    code = "body_too_slow"


class UnsupportedFeature(RequestError):
    code = "unsupported_feature"


class SchemaTooLarge(UnsupportedFeature):
    """Carries the name of the exceeded ``bound`` and its ``limit`` in ``details``."""

    code = "schema_too_large"


class AddressNotAllowed(RequestError):
    code = "address_refused"


class ContextTooLong(RequestError):
    code = "context_too_long"


class QualityUnreachable(RequestError):
    """Carries the ``best`` model that can answer, and its ``p_good``, in ``details``."""

    code = "quality_unreachable"


class AccessError(MoyinError):
    code = "access_denied"


class MissingKey(AccessError):
    code = "missing_api_key"


class InvalidKey(AccessError):
    code = "invalid_api_key"


class InvalidCredentials(AccessError):
    code = "invalid_credentials"


class InvalidToken(AccessError):
    code = "invalid_token"


class InsufficientScope(AccessError):
    code = "insufficient_scope"


class PriorityNotAllowed(AccessError):
    code = "priority_not_allowed"


class PathNotAllowed(AccessError):
    code = "path_refused"


class CrossSiteRequest(AccessError):
    code = "cross_site_request"


class ModelNotAllowed(AccessError):
    code = "model_not_allowed"


class LimitExceeded(MoyinError):
    """Carries ``headers`` for the response, in every protocol."""

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
    code = "too_many_jobs"


class TooManyAttempts(LimitExceeded):
    code = "too_many_attempts"
    retryable = True


class BudgetExceeded(LimitExceeded):
    code = "budget_exceeded"


class NotFound(MoyinError):
    code = "not_found"


class RouteNotFound(NotFound):
    code = "route_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"


class ResponseNotFound(NotFound):
    code = "response_not_found"


class UserFileNotFound(NotFound):
    code = "file_not_found"


class TemplateNotFound(NotFound):
    code = "template_not_found"


class ArtifactNotFound(NotFound):
    code = "artifact_not_found"


class ContentNotFound(NotFound):
    code = "content_not_found"


class Conflict(MoyinError):
    code = "conflict"


class FileExists(Conflict):
    code = "file_exists"


class NameTaken(Conflict):
    code = "name_taken"


class FeedbackAlreadyGiven(Conflict):
    code = "feedback_given"


class JobFinished(Conflict):
    code = "job_finished"


class JobNotFinished(Conflict):
    code = "job_not_finished"


class ContentMismatch(Conflict):
    code = "content_mismatch"


class ArtifactInUse(Conflict):
    code = "artifact_in_use"


class IdempotencyMismatch(Conflict):
    code = "idempotency_key_reused"


class Unavailable(MoyinError):
    code = "unavailable"
    retryable = True


class Overloaded(Unavailable):
    code = "overloaded"


class ServiceUnavailable(Unavailable):
    code = "service_unavailable"


class BackendError(MoyinError):
    code = "backend_error"


class BackendUnavailable(BackendError):
    code = "backend_unavailable"
    retryable = True


class BackendKeyRejected(BackendUnavailable):
    code = "backend_key_refused"
    retryable = False


class BackendTimeout(BackendError):
    code = "backend_timeout"
    retryable = True


class BackendRejected(BackendError):
    code = "backend_rejected"


class InvalidToolCall(BackendError):
    """Reports arguments of a tool call that the client's protocol can't express.

    ``details`` holds the ``tool`` and the ``arguments`` as the model wrote them.
    """

    code = "invalid_tool_call"


class StreamInterrupted(BackendError):
    code = "stream_interrupted"


class StepError(MoyinError):
    code = "step_error"


class RenderFailed(StepError):
    code = "render_failed"


class OutOfMemory(RenderFailed):
    """Names a pool with more memory in ``details["pool"]``, if there is one."""

    code = "out_of_memory"


class PoolNotAllowed(StepError):
    code = "pool_not_allowed"


class RenderPoisoned(StepError):
    code = "render_poisoned"


class WorkerLost(StepError):
    code = "worker_lost"
    retryable = True


class DeadlineExceeded(StepError):
    code = "deadline_exceeded"


class StepFailed(StepError):
    code = "step_failed"


class StackError(MoyinError):
    code = "stack_error"
