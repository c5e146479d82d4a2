"""Renders pictures for callers that wait for them, as jobs of the gateway."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from moyin import errors
from moyin.access.gatekeeper.links import new_file_link
from moyin.client.errors import ERROR_TYPES
from moyin.client.gateway import AcceptedJob, GatewayClient
from moyin.domain.identity import JOBS_READ, Identity
from moyin.render.templates.wire import TemplateBody
from moyin.text.protocol.openai import images

__all__ = ["Images", "JobEndedWithoutImages", "JobStillRunning"]

_log = logging.getLogger(__name__)


class JobStillRunning(errors.BackendTimeout):
    """The time limit for the pictures has passed; the job with the id ``job`` continues."""

    def __init__(self, job: str, seconds: float) -> None:
        super().__init__(
            f"the pictures are not ready after {seconds:g} seconds; job {job} continues: follow it "
            f"at /jobs/{job}, or send the header Prefer: respond-async",
            details={"job": job},
        )
        self.job = job


class JobEndedWithoutImages(Exception):
    """The job failed or was cancelled; ``__cause__`` says why."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Submits jobs for OpenAI's images API and turns their results into its responses.

    Attributes:
        signing_key: signs links to pictures.
    """

    gateway: GatewayClient
    signing_key: bytes

    async def submit(
        self,
        identity: Identity,
        body: images.ImagesBody,
        *,
        cache: bool,
        idempotency_key: str | None,
    ) -> AcceptedJob:
        """Submit the job that renders the pictures.

        Raises:
            MoyinError: the request is wrong; ``field`` is a member of the images API.
        """
        path = f"/templates/{quote(body.model, safe='')}"
        try:
            document = await self.gateway.read_json(path, identity=_with_reading(identity))
        except errors.TemplateNotFound as error:
            raise errors.ModelNotFound(
                f"there is no template {body.model!r}", field="model"
            ) from error
        template = TemplateBody.model_validate(document)
        job = images.images_request_to_job(
            body,
            template.name,
            template.inputs["properties"],
            cache=cache,
            idempotency_key=idempotency_key,
        )
        try:
            return await self.gateway.submit_job(
                job, identity=identity, idempotency_key=idempotency_key
            )
        except errors.MoyinError as error:
            raise images.rename_job_field(error) from None

    async def wait(self, identity: Identity, job_id: str, seconds: float) -> Mapping[str, Any]:
        """Return the job once it has succeeded.

        Raises:
            JobStillRunning: it has not ended after ``seconds``.
            JobEndedWithoutImages: it failed or was cancelled.
        """
        try:
            async with asyncio.timeout(seconds):
                job = await self.gateway.wait_for_job(job_id, identity=_with_reading(identity))
        except TimeoutError:
            raise JobStillRunning(job_id, seconds) from None
        if job["status"] == "cancelled":
            raise JobEndedWithoutImages(job_id) from errors.StepFailed("the job was cancelled")
        if job["status"] != "succeeded":
            error = job["error"]
            kind = ERROR_TYPES.get(error["code"], errors.StepFailed)
            raise JobEndedWithoutImages(job_id) from kind(error["message"])
        return job

    async def abandon(
        self, identity: Identity, submission: asyncio.Future[AcceptedJob], *, cancel: bool
    ) -> None:
        """Let a submission finish whose client has disconnected, and cancel its job if asked to."""
        try:
            accepted = await submission
            if cancel:
                await self.gateway.cancel_job(accepted.location, identity=identity)
        except errors.JobFinished:
            return
        except errors.MoyinError as error:
            _log.warning("the job of a disconnected client was not cancelled: %s", error)

    async def data(
        self,
        identity: Identity,
        job: Mapping[str, Any],
        body: images.ImagesBody,
        base: str,
        ttl: float,
    ) -> list[dict[str, str]]:
        """Return OpenAI's ``data``, with one entry per picture.

        Args:
            base: start of URLs: the gateway as the client reaches it.
            ttl: seconds for which URLs are valid.
        """
        pictures = [a for a in job["artifacts"] if a["media_type"].startswith("image/")]
        if body.response_format == "b64_json":
            reader = _with_reading(identity)
            contents = (await self.gateway.read(a["url"], identity=reader) for a in pictures)
            return [{"b64_json": base64.b64encode(content).decode()} async for content in contents]
        return [
            {"url": base + new_file_link(self.signing_key, identity.owner, a["id"], a["name"], ttl)}
            for a in pictures
        ]


def _with_reading(identity: Identity) -> Identity:
    """Add the scope to read jobs: callers that may submit a job may see its result."""
    return replace(identity, scopes=identity.scopes | {JOBS_READ})
