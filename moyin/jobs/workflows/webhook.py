"""`WebhookWorkflow`: tells the owner's webhook how a job ended, for hours if need be."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from moyin.jobs.workflows import policies
    from moyin.jobs.workflows.types import WEBHOOKS_QUEUE, WebhookInput

__all__ = ["WebhookWorkflow"]


@workflow.defn(name="WebhookWorkflow")
class WebhookWorkflow:
    """A workflow of its own, so that a slow receiver never delays or changes the job's end."""

    @workflow.run
    async def run(self, told: WebhookInput) -> bool:
        """True when it was delivered; False when it was no longer news."""
        delivered: bool = await workflow.execute_activity(
            "deliver_webhook",
            told,
            result_type=bool,
            task_queue=WEBHOOKS_QUEUE,
            start_to_close_timeout=policies.WEBHOOK_TIMEOUT,
            schedule_to_close_timeout=policies.WEBHOOK_LIMIT,
            retry_policy=policies.WEBHOOK,
        )
        return delivered
