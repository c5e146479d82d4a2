"""Contains `RenderActivities`, which runs the render steps of jobs as Temporal activities."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from pydantic_core import to_json
from temporalio import activity
from temporalio.exceptions import ApplicationError

from deployments.job_services import JobServices
from deployments.render.bookkeeper import RunBookkeeper
from deployments.render.failure_counts import FailureCounts
from deployments.render.guard import RenderGuard
from deployments.render.pool import Pool
from deployments.render.progress_reporter import ProgressReporter
from deployments.render.result_cache import RenderResultCache
from moyin.domain.artifact import Artifact
from moyin.domain.job import JobSpec, StepResult
from moyin.domain.prompt import ComfyPrompt, PromptRecord, build_channel_name
from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.domain.renderer import RenderProgress, RenderRequest, RenderSucceeded
from moyin.domain.serialization import to_plain
from moyin.errors import JobNotFound, MoyinError
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.step_io import Heartbeat, load_step, save_output, send_heartbeats
from moyin.jobs.workflows.types import StepInput, StepOutcome
from moyin.render.comfyui.model_sizes import ModelSizes
from moyin.render.comfyui.tenant import get_request_tenant
from moyin.render.protocol.graph import (
    find_artifact_ids,
    find_model_files,
    make_input_name,
    replace_inputs,
)
from moyin.render.protocol.shape import compute_shape
from moyin.render.protocol.signatures import compute_signatures
from moyin.render.scheduling.rules import PendingRender
from moyin.store.artifacts import derive_step_artifact_id
from moyin.store.prompts import PromptStore
from moyin.store.render_cache import CachedRender

# Seconds between heartbeats. Temporal writes each heartbeat to its database, and many renders wait
# concurrently.
_WAITING_HEARTBEAT_SECONDS = 2.0
# Name of the back end in the result of a step that came from the cache.
_CACHE_BACKEND = "cache"
_log = logging.getLogger(__name__)


class RenderActivities:
    """Provides the Temporal activity that renders the steps of a queue ``render-<pool>``."""

    def __init__(
        self,
        *,
        pool: Pool,
        services: JobServices,
        prompts: PromptStore,
        model_sizes: ModelSizes,
        result_cache: RenderResultCache,
        guard: RenderGuard,
        bookkeeper: RunBookkeeper,
        price: RenderPrice | None = None,
        has_process_per_tenant: bool = False,
    ) -> None:
        self._pool = pool
        self._services = services
        self._prompts = prompts
        self._model_sizes = model_sizes
        self._result_cache = result_cache
        self._guard = guard
        self._bookkeeper = bookkeeper
        self._price = price
        self._has_process_per_tenant = has_process_per_tenant

    @activity.defn
    async def render_step(self, step: StepInput) -> StepOutcome | StepResult:
        """Render a step's graph, or follow its prompt if a lost attempt left the prompt running."""
        async with send_heartbeats(_WAITING_HEARTBEAT_SECONDS) as heartbeat:
            try:
                return await self._services.status_writer.run_step(
                    step, lambda: self._render(step, heartbeat), starts_at_once=False
                )
            except ApplicationError:
                raise
            except Exception as error:
                raise _to_failure(error, heartbeat) from error

    async def _render(self, step: StepInput, heartbeat: Heartbeat) -> StepResult:
        spec, step_spec, graph = await load_step(self._services.blobs, step)
        request = await self._build_request(step, graph, spec.comfyui or ComfyPrompt())
        await self._guard.check_render(step.owner, step_spec.pool, request.graph, request.files)
        key = self._result_cache.compute_key(spec, step_spec, request)
        cached_result = await self._result_cache.find(step.owner, key, request) if key else None
        if cached_result is not None:
            await self._services.status_writer.mark_started(step)
            success, record = cached_result
            success = _select_files(success, step_spec.outputs)
            step_result = await self._save_result(step, _CACHE_BACKEND, success, record, ())
            return replace(step_result, cached=True)
        reporter = ProgressReporter(
            self._services.jobs,
            self._services.events,
            job_id=step.job_id,
            attempt=step.attempt,
            step=step.index,
            is_batch=spec.base is not None,
            mark_started=lambda: self._services.status_writer.mark_started(step),
        )
        records: list[PromptRecord] = []
        runs: list[RenderRun] = []

        def on_progress(progress: RenderProgress) -> None:
            heartbeat.use_shortest_interval()
            reporter.report(progress)

        pending_render = await asyncio.to_thread(_to_pending_render, step, spec, request)
        if self._has_process_per_tenant:
            pending_render = replace(pending_render, tenant=get_request_tenant(request))
        try:
            async with reporter:
                backend, success = await self._pool.render(
                    request,
                    pending_render,
                    on_progress,
                    on_record=records.append,
                    on_run=runs.append,
                    on_start=reporter.start,
                    job_attempt=step.attempt,
                    is_retry=activity.info().attempt > 1,
                )
                # A prompt that had already ended reports no start.
                reporter.start()
        except asyncio.CancelledError:
            record = await self._cancel_prompt(step, request.prompt_id)
            if record is not None:
                await self._store_record(step, spec, record)
            raise
        except MoyinError:
            await self._bookkeeper.book(runs)
            if records:
                await self._store_record(step, spec, records[-1])
            raise
        await self._bookkeeper.book(runs)
        record = records[-1] if records else None
        if key:
            result = CachedRender(prompt_id=request.prompt_id, done=success, record=record)
            await self._result_cache.store(step.owner, key, result)
        success = _select_files(success, step_spec.outputs)
        return await self._save_result(step, backend, success, record, runs, pending_render.shape)

    async def _build_request(
        self, step: StepInput, graph: Mapping[str, Any], prompt: ComfyPrompt
    ) -> RenderRequest:
        file_names, files = {}, {}
        for artifact_id in sorted({*find_artifact_ids(graph), *prompt.files.values()}):
            artifact = await self._services.artifacts.get_even_if_deleted(step.owner, artifact_id)
            name = make_input_name(artifact)
            file_names[artifact_id] = name
            files[name] = artifact.sha256
        replacements = {text: file_names[artifact_id] for text, artifact_id in prompt.files.items()}
        return RenderRequest(
            prompt_id=derive_prompt_id(step.job_id, step.index),
            graph=replace_inputs(graph, file_names, replacements),
            files=files,
            models=await self._model_sizes.measure(find_model_files(graph)),
            extra_data=self._guard.add_pool_rules(step.owner, prompt.extra_data),
            targets=prompt.targets,
            channel=None
            if prompt.client_id is None
            else build_channel_name(step.owner, prompt.client_id),
            account=self._build_account(step),
            job_id=step.job_id,
            step=step.index,
        )

    def _build_account(self, step: StepInput) -> RenderAccount | None:
        if self._price is None:
            return None
        return RenderAccount(
            owner=step.owner, job_id=step.job_id, pool=self._pool.name, price=self._price
        )

    async def _store_record(self, step: StepInput, spec: JobSpec, record: PromptRecord) -> None:
        """Store ComfyUI's history entry of a render that failed or was cancelled.

        Does nothing for a job with several steps: only jobs with one step keep such an entry.
        """
        if len(spec.steps) == 1:
            blob = await self._services.blobs.put(to_json({"record": to_plain(record)}))
            await self._prompts.set_record(step.job_id, blob, step.attempt)

    async def _cancel_prompt(self, step: StepInput, prompt_id: str) -> PromptRecord | None:
        """Cancel the prompt, unless a later attempt will follow it, and return its history entry.

        Return None if the prompt was not cancelled, or has no history entry.
        """
        if await self._is_last_attempt(step):
            record = None
            with contextlib.suppress(MoyinError):
                record = await self._pool.cancel(prompt_id, step.attempt)
                if self._price is not None:
                    # No attempt follows the prompt, so its run would otherwise be recorded only at
                    # the next status poll.
                    await self._bookkeeper.book(await self._pool.find_ended_runs(prompt_id))
            return record
        return None

    async def _is_last_attempt(self, step: StepInput) -> bool:
        details = activity.cancellation_details()
        if details is None:
            return False
        if not details.not_found:
            return details.cancel_requested
        # Temporal has closed the workflow or started another attempt of the activity.
        try:
            return (await self._services.jobs.find(step.job_id)).status.is_final
        except JobNotFound:
            return True  # The owner has deleted the job, which therefore had ended.

    async def _save_result(
        self,
        step: StepInput,
        backend: str,
        success: RenderSucceeded,
        record: PromptRecord | None,
        runs: Sequence[RenderRun],
        shape: str | None = None,
    ) -> StepResult:
        artifacts = tuple(
            Artifact(
                id=derive_step_artifact_id(step.job_id, step.index, ordinal),
                name=file.name,
                media_type=file.media_type,
                size=file.size,
                sha256=file.sha256,
            )
            for ordinal, file in enumerate(success.files)
        )
        output = await save_output(
            self._services.blobs,
            body={"outputs": _collect_outputs(success, artifacts)},
            artifacts=artifacts,
            record=record,
        )
        return StepResult(
            index=step.index,
            output=output,
            artifacts=artifacts,
            cost_usd=sum((run.cost_usd for run in runs), Decimal(0)),
            backend=backend,
            gpu_seconds=round(sum((run.seconds for run in runs), 0.0), 3),
            # Actors of earlier versions do not measure the loading of models.
            load_seconds=round(sum((getattr(run, "load_seconds", 0.0) for run in runs), 0.0), 3),
            shape=shape if runs else None,
            pictures=runs[-1].pictures if runs else None,
        )


def _to_failure(error: Exception, heartbeat: Heartbeat) -> ApplicationError:
    """Return the Temporal error to raise for ``error``, and count the failure.

    The heartbeat details carry the counts to the next attempt.
    """
    counts = FailureCounts.from_heartbeat(heartbeat.details).add(error)
    heartbeat.details = (counts.to_heartbeat(),)
    heartbeat.send()
    reported_error = counts.find_final_error(error) or error
    if not isinstance(reported_error, MoyinError):
        job_id = activity.info().workflow_id
        _log.error("the render of job %s failed with an unexpected error", job_id, exc_info=error)
        reported_error = MoyinError(
            "the render failed with an internal error; see the log of its pool"
        )
        return to_application_error(reported_error, retryable=counts.allows_retry(error))
    return to_application_error(reported_error, retryable=counts.allows_retry(reported_error))


def derive_prompt_id(job_id: str, index: int) -> str:
    """Return the id of a step's prompt.

    The prompt of the first step has the job's id, as ComfyUI's clients expect.
    """
    return job_id if index == 0 else str(uuid.uuid5(uuid.UUID(job_id), str(index)))


def _to_pending_render(step: StepInput, spec: JobSpec, request: RenderRequest) -> PendingRender:
    return PendingRender(
        id=request.prompt_id,
        job_id=step.job_id,
        priority=spec.priority,
        # The time at which the step was scheduled is the same for all attempts.
        arrived=activity.info().scheduled_time.timestamp(),
        owner=step.owner,
        deadline=None if spec.deadline is None else spec.deadline.timestamp(),
        models=request.models,
        shape=compute_shape(request.graph),
        signatures=compute_signatures(request.graph, step.owner),
    )


def _select_files(success: RenderSucceeded, outputs: tuple[str, ...]) -> RenderSucceeded:
    """Return the result with only the files of the nodes in ``outputs``; if empty, of all nodes."""
    if not outputs:
        return success
    return replace(success, files=tuple(file for file in success.files if file.node in outputs))


def _collect_outputs(
    success: RenderSucceeded, artifacts: tuple[Artifact, ...]
) -> dict[str, dict[str, list[Any]]]:
    """Return the outputs by node and slot, as in ComfyUI's history; files are ``artifact:<id>``."""
    outputs: dict[str, dict[str, list[Any]]] = {}
    for file, artifact in zip(success.files, artifacts, strict=True):
        slot_values = outputs.setdefault(file.node, {}).setdefault(file.slot, [])
        slot_values.append(f"artifact:{artifact.id}")
    for node, values in success.values.items():
        for name, items in values.items():
            outputs.setdefault(node, {}).setdefault(name, []).extend(items)
    return outputs
