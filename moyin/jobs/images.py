"""`Images`: pictures for who waits for them, rendered by a job behind the door."""

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
from moyin.domain.identity import JOBS_READ, Identity
from moyin.jobs.remote import Accepted, RemoteJobs, error_of
from moyin.render.templates.wire import TemplateBody
from moyin.text.protocol.openai import images

__all__ = ["Images", "JobGoesOn", "JobLost"]

_log = logging.getLogger(__name__)


class JobGoesOn(errors.BackendTimeout):
    """The pictures are not there yet; ``job`` goes on."""

    def __init__(self, job: str, seconds: float) -> None:
        super().__init__(
            f"the pictures are not ready after {seconds:g} seconds; job {job} goes on: follow it at "
            f"/jobs/{job}, or ask with the header Prefer: respond-async",
            details={"job": job},
        )
        self.job = job


class JobLost(Exception):
    """The job ended without pictures; ``__cause__`` says why."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Asks the door for pictures and for templates.

    Attributes:
        signing_key: of links to pictures.
    """

    jobs: RemoteJobs
    signing_key: bytes

    async def submit(
        self,
        identity: Identity,
        body: images.ImagesBody,
        *,
        cache: bool,
        idempotency_key: str | None,
    ) -> Accepted:
        """The job that renders the pictures.

        Raises:
            MoyinError: what is wrong, in the words of the images API.
        """
        try:
            found = await self.jobs.read(_reader(identity), f"/templates/{_segment(body.model)}")
        except errors.TemplateNotFound as error:
            raise errors.ModelNotFound(
                f"there is no template {body.model!r}", field="model"
            ) from error
        template = TemplateBody.model_validate(found)
        job = images.to_job(
            body,
            template.name,
            template.inputs["properties"],
            cache=cache,
            idempotency_key=idempotency_key,
        )
        try:
            return await self.jobs.submit(identity, job, idempotency_key=idempotency_key)
        except errors.MoyinError as error:
            raise images.rename_field(error) from None

    async def finished(self, identity: Identity, job_id: str, seconds: float) -> Mapping[str, Any]:
        """The job, once it has succeeded.

        Raises:
            JobGoesOn: that takes longer than ``seconds``.
            JobLost: it failed or was cancelled.
        """
        try:
            async with asyncio.timeout(seconds):
                job = await self.jobs.ended(_reader(identity), job_id)
        except TimeoutError:
            raise JobGoesOn(job_id, seconds) from None
        if job["status"] == "cancelled":
            raise JobLost(job_id) from errors.StepFailed("the job was cancelled")
        if job["status"] != "succeeded":
            raise JobLost(job_id) from error_of(job["error"]["code"], job["error"]["message"])
        return job

    async def abandon(
        self, identity: Identity, submitted: asyncio.Future[Accepted], *, cancel: bool
    ) -> None:
        """Nobody waits for the job any more: let its submission end, and cancel what came of it."""
        try:
            accepted = await submitted
            if cancel:
                await self.jobs.cancel(identity, accepted.location)
        except errors.JobFinished:
            return
        except errors.MoyinError as error:
            _log.warning("a job that nobody waits for was not cancelled: %s", error)

    async def data(
        self,
        identity: Identity,
        job: Mapping[str, Any],
        body: images.ImagesBody,
        base: str,
        ttl: float,
    ) -> list[dict[str, str]]:
        """OpenAI's ``data``: a picture each.

        Args:
            base: of URLs, the door as the client reaches it.
            ttl: seconds for which URLs are good.
        """
        artifacts = [one for one in job["artifacts"] if one["media_type"].startswith("image/")]
        if body.response_format == "b64_json":
            reader = _reader(identity)
            return [
                {"b64_json": base64.b64encode(await self.jobs.content(reader, a["url"])).decode()}
                for a in artifacts
            ]
        return [
            {"url": base + new_file_link(self.signing_key, identity.owner, a["id"], a["name"], ttl)}
            for a in artifacts
        ]


def _reader(identity: Identity) -> Identity:
    """Who may submit sees what comes of it."""
    return replace(identity, scopes=identity.scopes | {JOBS_READ})


def _segment(name: str) -> str:
    return quote(name, safe="")
