"""Defines `JobActivities`, the activities of jobs that need no renderer."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.job import Job, StepKind, StepResult
from moyin.errors import MoyinError, StepFailed
from moyin.jobs.protocol import chat
from moyin.jobs.protocol.response import event_of
from moyin.jobs.step_client import StepClient, StepResponse
from moyin.jobs.webhooks.sender import WebhookSender
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.steps import heartbeating, load_step, save_output
from moyin.jobs.workflows.types import JobOutcome, StepDone, StepInput, StepRecord, WebhookInput
from moyin.store.artifacts import derive_step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore

__all__ = ["JobActivities"]

# Larger JSON responses become artifacts, because every later step reads an output whole.
_MAX_INLINE_BYTES = 1024 * 1024


class JobActivities:
    """Runs chat and http steps, writes to the job's row, and delivers webhooks.

    Every activity may run more than once and then has the effect of one run.
    """

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
    def of_jobs_queue(self) -> list[Any]:
        """The activities of the queue ``jobs``."""
        return [self.chat_step, self.http_step, self.record_step, self.finish]

    @activity.defn
    async def chat_step(self, step: StepInput) -> StepDone:
        """Send a chat step's request to the models app."""
        async with heartbeating(), _application_errors():
            return await self._status_writer.run_step(step, lambda: self._chat(step))

    @activity.defn
    async def http_step(self, step: StepInput) -> StepDone:
        """Send an http step's request to a service behind the gateway."""
        async with heartbeating(), _application_errors():
            return await self._status_writer.run_step(step, lambda: self._call(step))

    @activity.defn
    async def record_step(self, record: StepRecord) -> bool:
        """Record a step that its own activity could not: see `JobStatusWriter.record_step`."""
        return await self._status_writer.record_step(record)

    @activity.defn
    async def finish(self, outcome: JobOutcome) -> bool:
        """Record an end that no step's activity could: see `JobStatusWriter.finish`."""
        async with _application_errors():
            return await self._status_writer.finish(outcome)

    @activity.defn
    async def deliver_webhook(self, webhook: WebhookInput) -> bool:
        """POST the job to its webhook; return False if a later attempt has begun."""
        async with _application_errors():
            job = await self._jobs.find(webhook.job_id)
            url = (await self._jobs.get_launch(webhook.job_id)).webhook
            if url is None or job.attempts != webhook.attempt or not job.status.is_final:
                return False
            await self._webhooks.send(
                url,
                owner=job.owner,
                message_id=f"msg_{job.id}_{webhook.attempt}",
                payload=_webhook_payload(job),
            )
        return True

    async def _chat(self, step: StepInput) -> StepResult:
        _, spec, payload = await load_step(self._blobs, step)
        response = await self._step_client.call(
            await self._jobs.get_submitter(step.job_id),
            "POST",
            chat.path_of(spec.protocol, payload),
            body=chat.to_unstreamed(spec.protocol, payload),
            idempotency_key=_idempotency_key(step, StepKind.CHAT),
        )
        body = response.json()
        text = chat.text_of(spec.protocol, body)
        output = await save_output(self._blobs, text=text, body=body)
        return _result(step, output, response)

    async def _call(self, step: StepInput) -> StepResult:
        _, _, payload = await load_step(self._blobs, step)
        path = payload["path"]
        if not isinstance(path, str):
            raise StepFailed("the path of an http step must be a string")
        response = await self._step_client.call(
            await self._jobs.get_submitter(step.job_id),
            payload["method"],
            path,
            body=await self._request_body(payload),
            headers={name: str(value) for name, value in payload["headers"].items()},
            idempotency_key=_idempotency_key(step, StepKind.HTTP),
        )
        text, body = _inline(response)
        if text is not None or body is not None:
            output = await save_output(self._blobs, text=text, body=body)
            return _result(step, output, response)
        artifact = await self._store(step, response)
        output = await save_output(self._blobs, artifacts=[artifact])
        return _result(step, output, response, artifact)

    async def _request_body(self, payload: Mapping[str, Any]) -> Any:
        """Return the body in the step, or the stored body of a request that became a job."""
        if payload.get("blob") is None:
            return payload["body"]
        try:
            return await self._blobs.get(payload["blob"])
        except FileNotFoundError:
            raise StepFailed("the request's body is no longer in the artifact store") from None

    async def _store(self, step: StepInput, response: StepResponse) -> Artifact:
        extension = mimetypes.guess_extension(response.media_type) or ".bin"
        return Artifact(
            id=derive_step_artifact_id(step.job_id, step.index, 0),
            name=f"step-{step.index}{extension}",
            media_type=response.media_type,
            size=len(response.content),
            sha256=await self._blobs.put(response.content),
        )


@asynccontextmanager
async def _application_errors() -> AsyncIterator[None]:
    """Turn our errors into failures that Temporal retries only if a retry can help."""
    try:
        yield
    except MoyinError as error:
        raise to_application_error(error) from error


def _webhook_payload(job: Job) -> dict[str, Any]:
    """Return a webhook's payload in the form that Standard Webhooks recommends."""
    kind, data = event_of(job)
    ended = job.finished_at or job.created_at
    return {"type": f"job.{kind.value}", "timestamp": ended.isoformat(), "data": data}


def _idempotency_key(step: StepInput, kind: StepKind) -> str:
    """Return a key that is the same on every try of a step."""
    return f"{kind.value}-{step.job_id}-{step.index}"


def _inline(response: StepResponse) -> tuple[str | None, Any]:
    """Return the text or the JSON body of a response; both None: it has to become an artifact."""
    if len(response.content) > _MAX_INLINE_BYTES:
        return None, None
    if response.media_type == "application/json" or response.media_type.endswith("+json"):
        return None, response.json()
    if response.media_type.startswith("text/") or not response.content:
        return response.content.decode(errors="replace"), None
    return None, None


def _result(
    step: StepInput, output: str, response: StepResponse, *artifacts: Artifact
) -> StepResult:
    return StepResult(
        index=step.index,
        output=output,
        artifacts=artifacts,
        cost_usd=response.cost_usd,
        backend=response.backend,
    )
