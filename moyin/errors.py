"""Every error that Moyin raises on purpose.

::

    MoyinError
    ├── RequestError            the request itself is wrong
    │   ├── InvalidJson         invalid_json
    │   ├── InvalidRequest      invalid_request            (names the field)
    │   │   └── EditorFormat    editor_format              (a graph as ComfyUI's editor saves it)
    │   ├── InvalidGraph        invalid_graph              (carries ComfyUI's own body)
    │   ├── PromptIdTaken       prompt_id_taken            (a ComfyUI client's own id)
    │   ├── InputNotFound       input_not_found            (a graph names a file that is not the caller's)
    │   ├── NodeNotAllowed      node_not_allowed           (by the pool, or by the caller's limits)
    │   ├── WeakPassword        weak_password              (known to guessers; names the field)
    │   ├── BodyTooLarge        body_too_large
    │   ├── PictureTooLarge     picture_too_large          (to be decoded; details hold the bound)
    │   ├── NoRoomLeft          no_room_left               (for files of ComfyUI's frontend)
    │   ├── BodyTooSlow         body_too_slow
    │   ├── UnsupportedFeature  unsupported_feature        (names the field)
    │   │   └── SchemaTooLarge  schema_too_large           (for a server of ours; details hold the bound)
    │   ├── AddressRefused      address_refused            (a webhook into a private network)
    │   ├── QualityUnreachable  quality_unreachable        (the header's floor; details name the best)
    │   └── ContextTooLong      context_too_long
    ├── AccessError
    │   ├── MissingKey          missing_api_key
    │   ├── InvalidKey          invalid_api_key
    │   ├── InvalidCredentials  invalid_credentials        (email and password, or a sign-in)
    │   ├── InvalidToken        invalid_token              (refresh and reset tokens)
    │   ├── InsufficientScope   insufficient_scope         (details name the scope)
    │   ├── PriorityNotAllowed  priority_not_allowed       (names the field; details name the best class)
    │   ├── PathRefused         path_refused               (out of one's own folder)
    │   ├── CrossSite           cross_site_request         (another site's page, a cookie of ours)
    │   └── ModelNotAllowed     model_not_allowed          (the tenant's policy, or where data may go)
    ├── LimitExceeded           carries RateLimit-* headers
    │   ├── RateLimited         rate_limit_exceeded        (retryable, retry_after seconds)
    │   │   └── TooManyJobs     too_many_jobs              (are open)
    │   ├── TooManyAttempts     too_many_attempts          (retryable: signing in)
    │   └── BudgetExceeded      budget_exceeded            (until the day or the month is over)
    ├── NotFound
    │   ├── RouteNotFound       route_not_found
    │   ├── ModelNotFound       model_not_found
    │   ├── JobNotFound         job_not_found
    │   ├── RequestNotFound     request_not_found          (in the ledger)
    │   ├── FileNotKept         file_not_found             (of ComfyUI's frontend)
    │   ├── TemplateNotFound    template_not_found
    │   ├── ArtifactNotFound    artifact_not_found
    │   └── ContentNotFound     content_not_found          (the caller has no file with this hash)
    ├── Conflict
    │   ├── FileExists          file_exists
    │   ├── NameTaken           name_taken                 (an email, an organisation's name)
    │   ├── FeedbackGiven       feedback_given             (another score for the same request)
    │   ├── JobFinished         job_finished
    │   ├── JobNotFinished      job_not_finished
    │   ├── ContentMismatch     content_mismatch           (not the bytes that the client meant)
    │   ├── ArtifactInUse       artifact_in_use            (it is a job's output)
    │   └── IdempotencyMismatch idempotency_key_reused
    ├── Unavailable             retryable; may carry retry_after seconds
    │   ├── Overloaded          overloaded
    │   └── ServiceUnavailable  service_unavailable
    ├── BackendError            a model back end failed
    │   ├── BackendUnavailable  backend_unavailable        (retryable)
    │   │   └── BackendKeyRefused backend_key_refused      (our own key, not the client's)
    │   ├── BackendTimeout      backend_timeout            (retryable)
    │   ├── BackendRejected     backend_rejected           (the back end says the request is wrong)
    │   ├── InvalidToolCall     invalid_tool_call          (the model's arguments; details hold them)
    │   └── StreamInterrupted   stream_interrupted         (after the first byte)
    ├── StepError               a step of a job failed
    │   ├── PoolNotAllowed      pool_not_allowed           (it serves other tenants)
    │   ├── RenderFailed        render_failed              (a node raised)
    │   │   └── OutOfMemory     out_of_memory              (of the card; details may name a pool)
    │   ├── RenderPoisoned      render_poisoned            (it ended every ComfyUI that tried it)
    │   ├── WorkerLost          worker_lost                (retryable: the process died under it)
    │   ├── DeadlineExceeded    deadline_exceeded
    │   └── StepFailed          step_failed
    └── StackError              `moyin up` and friends; the message is for a person

Domain errors know a stable ``code`` and whether a retry can help. They never know an HTTP status:
``moyin.http.problems`` maps types to statuses, and each protocol renders its own body.
Messages may reach clients: put nothing in them that another tenant or an operator alone may see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MoyinError(Exception):
    """Base of the tree.

    Args:
        message: one sentence for the client: what is wrong and what would be right.
        field: the path of the offending field, such as ``messages.0.content``.
        details: extra members for the error body, JSON-serialisable.
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


class EditorGraphFormat(InvalidRequest):
    code = "editor_format"


class InvalidGraph(RequestError):
    """``details`` is ComfyUI's own validation body: ``{"error": …, "node_errors": …}``."""

    code = "invalid_graph"


class PromptIdTaken(RequestError):
    code = "prompt_id_taken"


class InputNotFound(RequestError):
    """``details`` is a body like that of `InvalidGraph`, where a node and an input can be named."""

    code = "input_not_found"


class WeakPassword(RequestError):
    code = "weak_password"


class NodeNotAllowed(RequestError):
    """``details`` is a body like that of `InvalidGraph`."""

    code = "node_not_allowed"


class BodyTooLarge(RequestError):
    code = "body_too_large"


class PictureTooLarge(RequestError):
    """``details`` hold the bound: ``max_pixels``, ``max_memory_mib``, ``max_bytes`` or
    ``max_seconds``, and what is known of the picture: ``width``, ``height``, ``bytes``."""

    code = "picture_too_large"


class UserStorageFull(RequestError):
    code = "no_room_left"


class BodyTooSlow(RequestError):
    code = "body_too_slow"


class UnsupportedFeature(RequestError):
    code = "unsupported_feature"


class SchemaTooLarge(UnsupportedFeature):
    """``details``: the ``bound`` by its name and its ``limit``."""

    code = "schema_too_large"


class AddressNotAllowed(RequestError):
    code = "address_refused"


class ContextTooLong(RequestError):
    code = "context_too_long"


class QualityUnreachable(RequestError):
    """``details``: the ``best`` model that could answer, and its ``p_good``."""

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
    """``headers`` go with the answer, in every protocol."""

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
    """The model called a tool with arguments that the client's protocol has no place for.
    ``details``: the ``tool`` and the ``arguments`` as the model wrote them."""

    code = "invalid_tool_call"


class StreamInterrupted(BackendError):
    code = "stream_interrupted"


class StepError(MoyinError):
    code = "step_error"


class RenderFailed(StepError):
    code = "render_failed"


class OutOfMemory(RenderFailed):
    """``details["pool"]``: a pool whose actors have more, where there is one."""

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
