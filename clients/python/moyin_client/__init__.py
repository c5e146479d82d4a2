"""Provides the Python client of Moyin's jobs: `Client`, and `AsyncClient` with the same methods."""

from moyin_client.async_client import AsyncClient
from moyin_client.client import Client
from moyin_client.errors import MoyinError
from moyin_client.models import (
    Artifact,
    Budget,
    BulkResult,
    Canceller,
    Child,
    Eta,
    Event,
    EventToken,
    FinishedStep,
    Job,
    JobError,
    Link,
    Output,
    Picture,
    Preview,
    Progress,
    Seconds,
    Submission,
    SubmittedStep,
    Usage,
    UsageGroup,
    UsageReport,
    Webhook,
)
from moyin_client.requests import Batch, Chat, Http, Pipeline, Render
from moyin_client.retry import RetryPolicy
from moyin_client.webhooks import verify_webhook

__all__ = [
    "Artifact",
    "AsyncClient",
    "Batch",
    "Budget",
    "BulkResult",
    "Canceller",
    "Chat",
    "Child",
    "Client",
    "Eta",
    "Event",
    "EventToken",
    "FinishedStep",
    "Http",
    "Job",
    "JobError",
    "Link",
    "MoyinError",
    "Output",
    "Picture",
    "Pipeline",
    "Preview",
    "Progress",
    "Render",
    "RetryPolicy",
    "Seconds",
    "Submission",
    "SubmittedStep",
    "Usage",
    "UsageGroup",
    "UsageReport",
    "Webhook",
    "verify_webhook",
]
