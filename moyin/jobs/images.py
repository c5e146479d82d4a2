"""Implements OpenAI's images API by jobs that render the pictures."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from moyin import errors
from moyin.access.gatekeeper.tokens import create_file_link
from moyin.client.errors import ERROR_TYPES
from moyin.client.gateway import AcceptedJob, GatewayClient
from moyin.domain.identity import JOBS_READ, Identity
from moyin.render.templates.wire import TemplateBody
from moyin.text.protocol.openai import images

_log = logging.getLogger(__name__)


class JobStillRunning(errors.BackendTimeout):
    """Reports that the pictures took longer than the time limit; the job ``job_id`` continues."""

    def __init__(self, job_id: str, seconds: float) -> None:
        super().__init__(
            f"the pictures are not ready after {seconds:g} seconds; job {job_id} continues: follow it "
            f"at /jobs/{job_id}, or send the header Prefer: respond-async",
            details={"job": job_id},
        )
        self.job = job_id


class JobEndedWithoutImages(Exception):
    """Reports that the job ``job_id`` failed or was cancelled; ``__cause__`` is the job's error."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} ended without pictures; GET /jobs/{job_id} shows its error")
        self.job = job_id


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageJobs:
    """Submits jobs for requests of OpenAI's images API and builds responses from their results."""

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
        """Submit and return the job that renders the pictures.

        Errors name the fields of the images API.

        Args:
            cache: True if the job may return the stored pictures of an equal render.
        """
        template = await self._read_template(identity, body.model)
        return await self._submit(
            identity, body, template, cache=cache, idempotency_key=idempotency_key
        )

    async def submit_edit(
        self,
        identity: Identity,
        edit: images.ImageEdit,
        *,
        cache: bool,
        idempotency_key: str | None,
    ) -> AcceptedJob:
        """Store the input pictures of an edit; submit and return the job that renders new pictures.

        The arguments ``cache`` and ``idempotency_key`` are those of `submit`.
        """
        template = await self._read_template(identity, edit.body.model)
        inputs = images.assign_pictures(edit, template.name, template.inputs["properties"])
        artifacts = {
            name: await self.gateway.upload(
                file.iterate_content(),
                file.name,
                file.content_type,
                identity=identity,
                # The uploads have keys derived from the request's, because a retry must submit the
                # same artifacts.
                idempotency_key=_derive_key(idempotency_key, name),
            )
            for name, file in inputs.items()
        }
        body = edit.body.model_copy(update={"inputs": {**edit.body.inputs, **artifacts}})
        return await self._submit(
            identity, body, template, cache=cache, idempotency_key=idempotency_key
        )

    async def _read_template(self, identity: Identity, name: str) -> TemplateBody:
        path = f"/templates/{quote(name, safe='')}"
        try:
            document = await self.gateway.read_json(path, identity=_add_read_scope(identity))
        except errors.TemplateNotFound as error:
            raise errors.ModelNotFound(
                f"there is no template {name!r}: model must be a template of GET /templates",
                field="model",
            ) from error
        return TemplateBody.model_validate(document)

    async def _submit(
        self,
        identity: Identity,
        body: images.ImagesBody,
        template: TemplateBody,
        *,
        cache: bool,
        idempotency_key: str | None,
    ) -> AcceptedJob:
        job_request = images.images_request_to_job(
            body,
            template.name,
            template.inputs["properties"],
            cache=cache,
            idempotency_key=idempotency_key,
        )
        try:
            return await self.gateway.submit_job(
                job_request, identity=identity, idempotency_key=idempotency_key
            )
        except errors.MoyinError as error:
            raise images.rename_job_field(error) from None

    async def wait_for_job(
        self, identity: Identity, job_id: str, seconds: float
    ) -> Mapping[str, Any]:
        """Wait until the job has succeeded, and return the job.

        Raises:
            JobStillRunning: the job has not ended after ``seconds``.
            JobEndedWithoutImages: the job failed or was cancelled.
        """
        try:
            async with asyncio.timeout(seconds):
                job = await self.gateway.wait_for_job(job_id, identity=_add_read_scope(identity))
        except TimeoutError:
            raise JobStillRunning(job_id, seconds) from None
        if job["status"] == "cancelled":
            raise JobEndedWithoutImages(job_id) from errors.StepFailed(
                f"job {job_id} was cancelled; send the request again to get pictures"
            )
        if job["status"] != "succeeded":
            error = job["error"]
            error_type = ERROR_TYPES.get(error["code"], errors.StepFailed)
            raise JobEndedWithoutImages(job_id) from error_type(error["message"])
        return job

    async def abandon(
        self, identity: Identity, submission: asyncio.Future[AcceptedJob], *, cancel: bool
    ) -> None:
        """Wait until a job is submitted whose client has disconnected, and cancel it if requested.

        Args:
            submission: the call of `submit` or `submit_edit` that is in progress or done.
            cancel: True to cancel the submitted job; False to let it continue.
        """
        try:
            accepted_job = await submission
            if cancel:
                await self.gateway.cancel_job(accepted_job.location, identity=identity)
        except errors.JobFinished:
            return
        except errors.MoyinError as error:
            _log.warning("the images job of a disconnected client was not cancelled: %s", error)

    async def render_data(
        self,
        identity: Identity,
        job: Mapping[str, Any],
        body: images.ImagesBody,
        base_url: str,
        ttl_seconds: float,
    ) -> list[dict[str, str]]:
        """Return the member ``data`` of OpenAI's response, with one entry per picture.

        Args:
            base_url: the gateway's URL for the client, used as the start of the pictures' URLs.
            ttl_seconds: the seconds for which the pictures' URLs are valid.
        """
        pictures = [a for a in job["artifacts"] if a["media_type"].startswith("image/")]
        if body.response_format == "b64_json":
            reading_identity = _add_read_scope(identity)
            contents = (
                await self.gateway.read(a["url"], identity=reading_identity) for a in pictures
            )
            return [{"b64_json": base64.b64encode(content).decode()} async for content in contents]
        return [
            {
                "url": base_url
                + create_file_link(
                    self.signing_key, identity.owner, a["id"], a["name"], ttl_seconds
                )
            }
            for a in pictures
        ]


def _add_read_scope(identity: Identity) -> Identity:
    """Return the identity with the scope to read jobs, which a submitter may lack."""
    return replace(identity, scopes=identity.scopes | {JOBS_READ})


def _derive_key(request_key: str | None, name: str) -> str | None:
    """Return the idempotency key for one file of a request, or None if the request has no key.

    Args:
        request_key: the idempotency key of the request.
        name: the name that distinguishes the file in the request.
    """
    return (
        None
        if request_key is None
        else hashlib.sha256(f"{request_key}:{name}".encode()).hexdigest()
    )
