"""Defines `JobActivities`, the activities of jobs except for those that render."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.job import StepKind, StepResult
from moyin.errors import MoyinError, StepFailed
from moyin.jobs.protocol.response import build_webhook_body
from moyin.jobs.protocol.step_requests import disable_streaming, extract_text, get_chat_path
from moyin.jobs.step_client import StepClient, StepResponse
from moyin.jobs.webhooks import WebhookSender
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.step_io import load_step, save_output, send_heartbeats
from moyin.jobs.workflows.types import JobOutcome, StepInput, StepOutcome, StepRecord, WebhookInput
from moyin.store.artifacts import derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore

# Responses of more bytes become artifacts, because each later step reads the output into memory.
_MAX_INLINE_BYTES = 1024 * 1024


class JobActivities:
    """The idempotent activities that run chat and http steps, record results and send webhooks."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        blobs: BlobStore,
        status_writer: JobStatusWriter,
        step_client: StepClient,
        webhooks: WebhookSender,
    ) -> None:
        self._jobs = jobs
        self._blobs = blobs
        self._status_writer = status_writer
        self._step_client = step_client
        self._webhooks = webhooks

    @property
    def jobs_queue_activities(self) -> list[Any]:
        """The activities that workers of the queue ``jobs`` run."""
        return [self.chat_step, self.http_step, self.record_step, self.finish]

    @activity.defn
    async def chat_step(self, step: StepInput) -> StepOutcome:
        """Run a chat step: send its request to the models app."""
        async with send_heartbeats(), _raise_application_errors():
            return await self._status_writer.run_step(step, lambda: self._send_chat_request(step))

    @activity.defn
    async def http_step(self, step: StepInput) -> StepOutcome:
        """Run an http step: send its request to a service behind the gateway."""
        async with send_heartbeats(), _raise_application_errors():
            return await self._status_writer.run_step(step, lambda: self._send_http_request(step))

    @activity.defn
    async def record_step(self, record: StepRecord) -> bool:
        """Write the checkpoint of a step whose own activity could not write it.

        Return False if the attempt is over.
        """
        return await self._status_writer.record_step(record)

    @activity.defn
    async def finish(self, outcome: JobOutcome) -> bool:
        """Write the end of an attempt, unless the last step's activity has written it.

        Return False if a later attempt has begun or the job was deleted.
        """
        async with _raise_application_errors():
            return await self._status_writer.finish(outcome)

    @activity.defn
    async def deliver_webhook(self, webhook: WebhookInput) -> bool:
        """Send a job's webhook and return True; return False if a newer attempt has begun."""
        async with _raise_application_errors():
            job = await self._jobs.find(webhook.job_id)
            url = (await self._jobs.get_launch(webhook.job_id)).webhook
            if url is None or job.attempts != webhook.attempt or not job.status.is_final:
                return False
            await self._webhooks.send(
                url,
                owner=job.owner,
                message_id=f"msg_{job.id}_{webhook.attempt}",
                payload=build_webhook_body(job),
            )
        return True

    async def _send_chat_request(self, step: StepInput) -> StepResult:
        _, step_spec, payload = await load_step(self._blobs, step)
        response = await self._step_client.call(
            await self._jobs.get_submitter(step.job_id),
            "POST",
            get_chat_path(step_spec.protocol, payload),
            body=disable_streaming(step_spec.protocol, payload),
            idempotency_key=_get_idempotency_key(step, StepKind.CHAT),
        )
        body = response.json()
        text = extract_text(step_spec.protocol, body)
        output_sha256 = await save_output(self._blobs, text=text, body=body)
        return _build_result(step, output_sha256, response)

    async def _send_http_request(self, step: StepInput) -> StepResult:
        _, _, payload = await load_step(self._blobs, step)
        path = payload["path"]
        if not isinstance(path, str):
            raise StepFailed(f"the path of http step {step.index} must be a string")
        response = await self._step_client.call(
            await self._jobs.get_submitter(step.job_id),
            payload["method"],
            path,
            body=await self._load_request_body(payload),
            headers={name: str(value) for name, value in payload["headers"].items()},
            idempotency_key=_get_idempotency_key(step, StepKind.HTTP),
        )
        text, body = _extract_inline_output(response)
        if text is not None or body is not None:
            output_sha256 = await save_output(self._blobs, text=text, body=body)
            return _build_result(step, output_sha256, response)
        artifact = await self._store_artifact(step, response)
        output_sha256 = await save_output(self._blobs, artifacts=[artifact])
        return _build_result(step, output_sha256, response, artifact)

    async def _load_request_body(self, payload: Mapping[str, Any]) -> Any:
        """Return the body of an http step, which is in the payload or in a blob."""
        if payload.get("blob") is None:
            return payload["body"]
        try:
            return await self._blobs.get(payload["blob"])
        except FileNotFoundError:
            raise StepFailed(
                f"the request's body {payload['blob']} was deleted from the artifact store; submit the "
                "job again"
            ) from None

    async def _store_artifact(self, step: StepInput, response: StepResponse) -> Artifact:
        extension = mimetypes.guess_extension(response.media_type) or ".bin"
        return Artifact(
            id=derive_step_artifact_id(step.job_id, step.index, 0),
            name=f"step-{step.index}{extension}",
            media_type=response.media_type,
            size=len(response.content),
            sha256=await self._blobs.put(response.content),
        )


@asynccontextmanager
async def _raise_application_errors() -> AsyncIterator[None]:
    """Turn a `MoyinError` into a failure that Temporal retries only if a retry can help."""
    try:
        yield
    except MoyinError as error:
        raise to_application_error(error) from error


def _get_idempotency_key(step: StepInput, kind: StepKind) -> str:
    """Return the idempotency key of the request of a step, the same for every try of the step."""
    return f"{kind.value}-{step.job_id}-{step.index}"


def _extract_inline_output(response: StepResponse) -> tuple[str | None, Any]:
    """Return a response's text and JSON value.

    Returns None for both if the response must be stored as an artifact instead.
    """
    if len(response.content) > _MAX_INLINE_BYTES:
        return None, None
    if response.media_type == "application/json" or response.media_type.endswith("+json"):
        return None, response.json()
    if response.media_type.startswith("text/") or not response.content:
        return response.content.decode(errors="replace"), None
    return None, None


def _build_result(
    step: StepInput, output_sha256: str, response: StepResponse, *artifacts: Artifact
) -> StepResult:
    return StepResult(
        index=step.index,
        output=output_sha256,
        artifacts=artifacts,
        cost_usd=response.cost_usd,
        backend=response.backend,
    )
