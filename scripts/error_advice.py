"""Explains each error code and advises clients; docs/reference/errors.md is made from this table.

A test fails if an error has no row here, or if a row has no error.
"""

from __future__ import annotations

from collections.abc import Mapping

# What the code means, and what a client should do.
ADVICE: Mapping[str, tuple[str, str]] = {
    "internal_error": (
        "Moyin failed in a way that it did not foresee.",
        "Report it with the `request_id`. A job was accepted only if you have its id.",
    ),
    "bad_request": ("The request is wrong.", "Correct what `detail` names."),
    "invalid_json": ("The body is not valid JSON.", "Send valid UTF-8 JSON."),
    "invalid_request": (
        "A member, parameter or header has a wrong value, or is unknown.",
        "Correct the part that `field` names.",
    ),
    "previous_response_not_found": (
        "`previous_response_id` names no response of the tenant, or one that has expired.",
        "Send the whole conversation as `input`.",
    ),
    "editor_format": (
        "The graph is in the format that ComfyUI's editor saves.",
        "Convert it with `POST /graphs/convert`, or export it with `Export (API)`.",
    ),
    "invalid_graph": (
        "ComfyUI's validation refuses the graph.",
        "Correct the nodes that `node_errors` names.",
    ),
    "graph_too_large": (
        "A graph has more nodes, links, values, levels or bytes than the tenant may submit: `bound`, "
        "`max` and `actual` name them.",
        "Split the graph, upload files instead of sending them within it, or ask an operator to raise "
        "the tenant's limit.",
    ),
    "prompt_id_taken": (
        "Another prompt, or one that was deleted, has the `prompt_id` that the client chose.",
        "Choose a new UUID, or leave the id out.",
    ),
    "input_not_found": (
        "The graph names a file that the caller does not have.",
        "Upload the file and name it as `artifact:<id>`.",
    ),
    "weak_password": ("The password is easy to guess.", "Choose a longer or less common one."),
    "node_not_allowed": (
        "The pool or the caller's limits forbid a class of node in the graph.",
        "Use other nodes or another pool, or ask the operator.",
    ),
    "body_too_large": ("The body exceeds the bound in `detail`.", "Send less, or upload a file."),
    "invalid_content_encoding": (
        "The body is not in the encoding that `Content-Encoding` names.",
        "Correct the header or the body.",
    ),
    "unsupported_content_encoding": (
        "Moyin cannot decode the `Content-Encoding`.",
        "Use an encoding of `accepted`, or none.",
    ),
    "picture_too_large": (
        "The picture exceeds a bound for decoding, which the error names.",
        "Make the picture smaller.",
    ),
    "archive_too_large": (
        "The files are too many or too large for one archive; the error names the bound.",
        "Choose fewer files, and make several archives.",
    ),
    "no_room_left": (
        "The user may store no more files of ComfyUI's frontend.",
        "Delete some of these files.",
    ),
    "file_storage_full": (
        "The tenant may store no more files.",
        "Delete files of `/v1/files`, or uploaded artifacts (`DELETE /artifacts/{id}`).",
    ),
    "body_too_slow": (
        "The body did not arrive in time.",
        "Send it again over a better connection.",
    ),
    "unsupported_feature": (
        "The back end or Moyin does not support what `field` names.",
        "Leave it out, or choose another model.",
    ),
    "schema_too_large": (
        "The JSON schema exceeds a bound for local model servers.",
        "Make the schema smaller, or choose a model of a provider.",
    ),
    "address_refused": (
        "The URL leads into a private network.",
        "Use a public address, or ask the operator to allow the network.",
    ),
    "context_too_long": (
        "The prompt exceeds the model's context.",
        "Shorten the prompt, or choose a model with a longer context.",
    ),
    "quality_unreachable": (
        "No model reaches the requested quality.",
        "Ask for less than the `p_good` of the `best` model.",
    ),
    "access_denied": ("The caller may not make the request.", "Use another key."),
    "missing_api_key": ("The request has no key.", "Send `Authorization: Bearer KEY`."),
    "invalid_api_key": (
        "The key or token is unknown, revoked or expired.",
        "Use a valid key, or sign in again.",
    ),
    "invalid_credentials": (
        "The email and password, or the sign-in, are wrong.",
        "Correct them, or reset the password.",
    ),
    "invalid_token": (
        "The refresh, reset or event token, or the link to a file, is wrong or expired.",
        "Sign in again, or request a new token or link.",
    ),
    "insufficient_scope": (
        "The key lacks the scope that `scope` names.",
        "Use a key with this scope.",
    ),
    "priority_not_allowed": (
        "The caller may not use this priority.",
        "Use `best_priority` or a larger number, or leave `priority` out.",
    ),
    "path_refused": (
        "The path lies outside the caller's folder, or is not valid.",
        "Use a plain relative path.",
    ),
    "cross_site_request": (
        "A page of another site sent the request with the user's cookie.",
        "Send a key in a header instead of the cookie.",
    ),
    "model_not_allowed": (
        "The tenant's policy or data residency excludes the model.",
        "Choose another model, or ask the operator.",
    ),
    "limit_exceeded": ("A limit is exceeded.", "See `detail` for which one."),
    "rate_limit_exceeded": (
        "Too many requests or tokens in the current period.",
        "Wait for the seconds of `Retry-After`, then send the request again.",
    ),
    "too_many_jobs": (
        "Too many of the caller's jobs are queued or running.",
        "Wait until some have ended, then submit again.",
    ),
    "too_many_batches": (
        "Too many of the tenant's batches are open.",
        "Wait until one has ended, then try again.",
    ),
    "too_many_attempts": (
        "Too many attempts to sign in.",
        "Wait for the seconds of `Retry-After`.",
    ),
    "budget_exceeded": (
        "The budget of the day or month is spent.",
        "Wait for the next period, or have the budget raised.",
    ),
    "not_found": ("The resource does not exist, or belongs to another tenant.", "Check the id."),
    "route_not_found": ("No route has this path.", "Check the path and the method."),
    "model_not_found": ("No model or alias has this name.", "Choose one of `GET /v1/models`."),
    "operation_not_configured": (
        "No configured model has the ability that the call needs.",
        "Choose another model, or ask the operator to configure one.",
    ),
    "job_not_found": (
        "The tenant has no job with this id, or it was deleted.",
        "Check the id and whose key it is.",
    ),
    "request_not_found": ("The ledger has no request with this id.", "Check the `x-request-id`."),
    "response_not_found": (
        "The tenant has no response with this id, or it has expired.",
        "Check the id; responses are kept for thirty days.",
    ),
    "stored_file_not_found": ("The tenant has no file with this id.", "Upload the file again."),
    "batch_not_found": ("The tenant has no batch of text with this id.", "Check the id."),
    "file_not_found": ("The user has no such file of ComfyUI's frontend.", "Check the path."),
    "template_not_found": (
        "No template has this name or alias.",
        "Choose one of `GET /templates`.",
    ),
    "preview_not_found": (
        "The job has no preview now: nobody asked before, it does not render, or it has ended.",
        "Follow the job's events with `?previews=true` and fetch the address in a `preview` event.",
    ),
    "artifact_not_found": (
        "The tenant has no artifact with this id, or it was deleted.",
        "Check the id, or render again.",
    ),
    "content_not_found": ("The caller has no file with this hash.", "Upload the file."),
    "conflict": ("The request conflicts with the resource's state.", "Read the resource again."),
    "file_exists": ("A file has this name already.", "Set `overwrite`, or choose another name."),
    "name_taken": ("The email or organisation's name is taken.", "Choose another."),
    "feedback_given": (
        "The request has another score already.",
        "Nothing; the first score counts.",
    ),
    "job_finished": (
        "The job has ended, so that it cannot be cancelled (or, if it succeeded, retried).",
        "Nothing; read the job's `status`.",
    ),
    "job_not_finished": ("The job has not ended.", "Wait for its end, or cancel it first."),
    "batch_finished": ("The batch has ended.", "Nothing; read its results."),
    "batch_not_finished": ("The batch has not ended.", "Wait for its end, or cancel it first."),
    "content_mismatch": ("The bytes do not match their hash.", "Upload the file again."),
    "artifact_in_use": (
        "The artifact is the output of a job.",
        "Delete the job, whose files go with it.",
    ),
    "idempotency_key_reused": (
        "The `Idempotency-Key` belongs to another request.",
        "Use a new key for every new request.",
    ),
    "unavailable": ("A part of Moyin is unavailable.", "Try again later."),
    "overloaded": (
        "Every place for such requests is taken.",
        "Try again after `Retry-After`, with growing pauses.",
    ),
    "slow_consumer": (
        "The client reads a stream of events too slowly.",
        "Connect again with the id of the last event.",
    ),
    "service_unavailable": (
        "A service that the request needs is starting or down.",
        "Try again after `Retry-After`, with the same `Idempotency-Key`.",
    ),
    "backend_error": ("A model's back end failed.", "Choose another model, or ask the operator."),
    "backend_unavailable": ("No back end of the model can be reached.", "Try again later."),
    "backend_key_refused": (
        "The provider refuses Moyin's key, not yours.",
        "Ask the operator, or choose another model.",
    ),
    "backend_timeout": (
        "The back end or the service did not answer in time.",
        "Try again; the first try may be billed.",
    ),
    "backend_rejected": (
        "The back end calls the request wrong.",
        "Correct the request as `detail` says.",
    ),
    "invalid_tool_call": (
        "The model called a tool with arguments that the protocol cannot express.",
        "Ask again, or choose another model; the call was billed.",
    ),
    "stream_interrupted": (
        "The stream broke after its first byte.",
        "Ask again; the part that came was billed.",
    ),
    "step_error": ("A step of the job failed.", "Read `message`, then retry the job."),
    "render_failed": (
        "A node of the graph raised an error.",
        "Correct the graph or its inputs; `details` names the node where it is known.",
    ),
    "out_of_memory": (
        "The graphics card had too little memory.",
        "Render smaller, or in the pool that `details.pool` names.",
    ),
    "resource_limit": (
        "The render used more memory, disk space or processes than its pool allows.",
        "Render smaller or fewer pictures at once; `details.bound` names the pool's setting.",
    ),
    "pool_not_allowed": (
        "The render pool serves other tenants.",
        "Choose another pool.",
    ),
    "render_poisoned": (
        "Every ComfyUI process that tried the prompt died.",
        "Change the graph; the same graph would do it again.",
    ),
    "worker_lost": (
        "The process that ran the step or the request died.",
        "Retry the job; send a request again with the same `Idempotency-Key`.",
    ),
    "deadline_exceeded": (
        "The job did not finish by its `deadline`.",
        "Submit it again with a later deadline.",
    ),
    "step_failed": ("The step cannot succeed.", "Correct what `message` names, then submit again."),
    "stack_error": (
        "`moyin up` or the stack failed; only the operator sees it.",
        "See `moyin doctor` and `moyin logs`.",
    ),
}
