"""`JobActivities`: what a JobWorker does for jobs."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from temporalio import activity

from moyin.domain.artifact import Artifact
from moyin.domain.job import Job, StepKind, StepResult
from moyin.errors import MoyinError, StepFailed
from moyin.jobs.gateway_client import Answer, DoorClient
from moyin.jobs.protocol import chat
from moyin.jobs.protocol.translate import event_of
from moyin.jobs.webhooks.sender import WebhookSender
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.steps import heartbeating, load_step, save_output
from moyin.jobs.workflows.types import (
    JobInput,
    JobOutcome,
    StepDone,
    StepInput,
    StepRecord,
    WebhookInput,
)
from moyin.store.artifacts import step_artifact_id
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore

__all__ = ["JobActivities"]

# Larger JSON answers become artifacts: an output is read whole by every later step.
_MAX_INLINE_BYTES = 1024 * 1024


class JobActivities:
    """The activities of the queue ``jobs``, with the clients they need.

    Every one may run more than once and then has the effect of one.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        blobs: BlobStore,
        record: JobStatusWriter,
        door: DoorClient,
        webhooks: WebhookSender,
    ) -> None:
        self._jobs = jobs
        self._blobs = blobs
        self._record = record
        self._door = door
        self._webhooks = webhooks

    def all(self) -> list[Any]:
        """For `temporalio.worker.Worker`."""
        return [
            self.job_start,
            self.chat_step,
            self.http_step,
            self.record_step,
            self.finish,
            # For those that were on their way before they had a queue of their own.
            self.deliver_webhook,
        ]

    @activity.defn
    async def job_start(self, job: JobInput) -> bool:
        """Mark the job running; False when this attempt must not run. For `JobInput.version` 1."""
        return await self._record.start(job.job_id, job.attempt)

    @activity.defn
    async def chat_step(self, step: StepInput) -> StepDone | StepResult:
        """Ask the models app through the door."""
        async with heartbeating(), _failing_well():
            return await self._record.around(step, lambda: self._chat(step))

    @activity.defn
    async def http_step(self, step: StepInput) -> StepDone | StepResult:
        """Call another service through the door."""
        async with heartbeating(), _failing_well():
            return await self._record.around(step, lambda: self._call(step))

    @activity.defn
    async def record_step(self, record: StepRecord) -> bool:
        """For a step that could not be written down when it was done: see `JobStatusWriter.step`."""
        return await self._record.step(record)

    @activity.defn
    async def finish(self, outcome: JobOutcome) -> bool:
        """For an end that no step could write down: see `JobStatusWriter.finish`."""
        async with _failing_well():
            return await self._record.finish(outcome)

    @activity.defn
    async def deliver_webhook(self, told: WebhookInput) -> bool:
        """POST the job to its webhook; False when a retry has made the news stale."""
        async with _failing_well():
            job = await self._jobs.find(told.job_id)
            url = (await self._jobs.launch(told.job_id)).webhook
            if url is None or job.attempts != told.attempt or not job.status.is_final:
                return False
            await self._webhooks.send(
                url,
                owner=job.owner,
                message_id=f"msg_{job.id}_{told.attempt}",
                payload=_news(job),
            )
        return True

    async def _chat(self, step: StepInput) -> StepResult:
        _, asked, payload = await load_step(self._blobs, step)
        answer = await self._door.call(
            await self._jobs.submitter(step.job_id),
            "POST",
            chat.path_of(asked.protocol, payload),
            body=chat.sent(asked.protocol, payload),
            idempotency_key=_idempotency_key(step, StepKind.CHAT),
        )
        body = answer.json()
        text = chat.text_of(asked.protocol, body)
        output = await save_output(self._blobs, text=text, body=body)
        return _result(step, output, answer)

    async def _call(self, step: StepInput) -> StepResult:
        _, _, payload = await load_step(self._blobs, step)
        path = payload["path"]
        if not isinstance(path, str):
            raise StepFailed("the path of an http step must be a string")
        answer = await self._door.call(
            await self._jobs.submitter(step.job_id),
            payload["method"],
            path,
            body=await self._call_body(payload),
            headers={name: str(value) for name, value in payload["headers"].items()},
            idempotency_key=_idempotency_key(step, StepKind.HTTP),
        )
        text, body = _inline(answer)
        if text is not None or body is not None:
            output = await save_output(self._blobs, text=text, body=body)
            return _result(step, output, answer)
        artifact = await self._keep(step, answer)
        output = await save_output(self._blobs, artifacts=[artifact])
        return _result(step, output, answer, artifact)

    async def _call_body(self, payload: Mapping[str, Any]) -> Any:
        """What the client wrote into the step, or the bytes of the request that it was made of."""
        if payload.get("blob") is None:
            return payload["body"]
        try:
            return await self._blobs.get(payload["blob"])
        except FileNotFoundError:
            raise StepFailed("the request's body is no longer in the artifact store") from None

    async def _keep(self, step: StepInput, answer: Answer) -> Artifact:
        extension = mimetypes.guess_extension(answer.media_type) or ".bin"
        return Artifact(
            id=step_artifact_id(step.job_id, step.index, 0),
            name=f"step-{step.index}{extension}",
            media_type=answer.media_type,
            size=len(answer.content),
            sha256=await self._blobs.put(answer.content),
        )


@asynccontextmanager
async def _failing_well() -> AsyncIterator[None]:
    """Turn our errors into failures that Temporal retries only where that can help."""
    try:
        yield
    except MoyinError as error:
        raise to_application_error(error) from error


def _news(job: Job) -> dict[str, Any]:
    """A webhook's payload, in the form that Standard Webhooks recommends."""
    kind, data = event_of(job)
    ended = job.finished_at or job.created_at
    return {"type": f"job.{kind.value}", "timestamp": ended.isoformat(), "data": data}


def _idempotency_key(step: StepInput, kind: StepKind) -> str:
    """The same on every try of a step, for services that know what to do with it."""
    return f"{kind.value}-{step.job_id}-{step.index}"


def _inline(answer: Answer) -> tuple[str | None, Any]:
    """Text and JSON body of an answer that is short enough; the rest becomes an artifact."""
    if len(answer.content) > _MAX_INLINE_BYTES:
        return None, None
    if answer.media_type == "application/json" or answer.media_type.endswith("+json"):
        return None, answer.json()
    if answer.media_type.startswith("text/") or not answer.content:
        return answer.content.decode(errors="replace"), None
    return None, None


def _result(step: StepInput, output: str, answer: Answer, *artifacts: Artifact) -> StepResult:
    return StepResult(
        index=step.index,
        output=output,
        artifacts=artifacts,
        cost_usd=answer.cost_usd,
        backend=answer.backend,
    )
