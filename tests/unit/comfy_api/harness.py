"""Provides stores that use SQLite and a folder, and a fake of a client's stream of frames."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_core import to_json

from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.notifier import PromptNotifier, PromptNotifiers
from moyin.domain.job import Job, JobSpec, Step, StepKind, StepResult
from moyin.domain.prompt import (
    ComfyPrompt,
    PromptFile,
    PromptRecord,
    build_channel_name,
    derive_job_id,
)
from moyin.domain.serialization import encode, to_plain
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.comfy_file_names import UploadStore
from moyin.store.frames import Frame, FrameHub, FrameStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.prompts import PromptStore
from moyin.store.sql import Database

OWNER, CLIENT = "ada", "browser"
GRAPH = {"1": {"class_type": "SaveImage", "inputs": {}}}


class FakeFrames:
    """Replaces both the `FrameStore` and the `FrameHub`, for one client."""

    is_half_full = False

    def __init__(self) -> None:
        self.earlier_frames: list[Frame] = []
        self.files: dict[tuple[str, str], PromptFile] = {}
        self.next_frames: asyncio.Queue[Frame | Exception] = asyncio.Queue()

    async def list_newest(self, channel: str, count: int) -> list[Frame]:
        return self.earlier_frames[-count:]

    async def find_file(self, prompt_id: str, path: str) -> PromptFile | None:
        return self.files.get((prompt_id, path))

    @asynccontextmanager
    async def subscribe(self, name: str, after: str | None) -> AsyncIterator[FakeFrames]:
        yield self

    async def next(self) -> list[Frame]:
        frame = await self.next_frames.get()
        if isinstance(frame, Exception):
            raise frame
        return [frame]


@dataclass
class ReceivingClient:
    """Collects the messages of a notifier."""

    notifier: PromptNotifier
    received_messages: asyncio.Queue[str | bytes]
    notifier_task: asyncio.Task[None]

    async def receive(self) -> str | bytes:
        """Return the next message."""
        return await asyncio.wait_for(self.received_messages.get(), 5)

    def is_idle(self) -> bool:
        """Return True if all messages have been received."""
        return self.received_messages.empty()


@dataclass
class ComfyApiHarness:
    """The stores, with helpers that create jobs and clients."""

    jobs: JobStore
    prompts: PromptStore
    blobs: BlobStore
    files: ComfyFiles
    frames: FakeFrames = field(default_factory=FakeFrames)

    async def create_job(
        self,
        *,
        owner: str = OWNER,
        is_running: bool = False,
        graph: Mapping[str, Any] = GRAPH,
        client: str = CLIENT,
        **job_fields: Any,
    ) -> Job:
        """Create a prompt that waits, or runs if ``is_running``.

        Args:
            client: ComfyUI's client id.
            job_fields: further fields of `NewJob`, such as the submitter's key.
        """
        step = Step(kind=StepKind.RENDER, payload=graph)
        prompt = ComfyPrompt(client_id=client)
        spec = await self.blobs.put(encode(JobSpec(kind="render", steps=(step,), comfyui=prompt)))
        chosen_id = job_fields.get("chosen_id")
        new_job = NewJob(
            id=str(uuid.uuid4()) if chosen_id is None else derive_job_id(owner, chosen_id),
            owner=owner,
            kind="render",
            spec=spec,
            heads=((StepKind.RENDER, "default"),),
            channel=build_channel_name(owner, client),
            **{"key_id": "k", "comfyui": True, **job_fields},
        )
        job, _ = await self.jobs.create(new_job)
        if is_running:
            await self.jobs.start(job.id, 1)
        return job

    async def store_result(self, record: PromptRecord) -> StepResult:
        """Store the record and return the step's result that contains it."""
        output = await self.blobs.put(to_json({"record": to_plain(record)}))
        return StepResult(index=0, output=output)

    def new_notifiers(self, *, tick: float = 60.0) -> PromptNotifiers:
        return PromptNotifiers(
            prompts=self.prompts,
            files=self.files,
            blobs=self.blobs,
            frames=cast(FrameStore, self.frames),
            hub=cast(FrameHub, self.frames),
            tick=tick,
        )

    @asynccontextmanager
    async def connect_client(
        self, notifiers: PromptNotifiers | None = None
    ) -> AsyncIterator[ReceivingClient]:
        """Connect a client, and collect its messages during the block."""
        received_messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        notifier = (notifiers or self.new_notifiers()).new_notifier(
            OWNER, CLIENT, received_messages.put
        )
        notifier_task = asyncio.create_task(notifier.run())
        try:
            yield ReceivingClient(notifier, received_messages, notifier_task)
        finally:
            notifier_task.cancel()
            await asyncio.gather(notifier_task, return_exceptions=True)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ComfyApiHarness]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    frames = FakeFrames()
    prompts, blobs = PromptStore(database), BlobStore(f"file://{tmp_path / 'blobs'}")
    files = ComfyFiles(
        uploads=UploadStore(database),
        artifacts=ArtifactStore(database),
        prompts=prompts,
        blobs=blobs,
        frames=cast(FrameStore, frames),
    )
    yield ComfyApiHarness(JobStore(database), prompts, blobs, files, frames)
    await database.close()


def make_record(**changes: Any) -> PromptRecord:
    """Return ComfyUI's history entry of a successful prompt; ``changes`` replace its attributes."""
    default_record = PromptRecord(
        outputs={}, meta={}, status="success", completed=True, messages=()
    )
    return replace(default_record, **changes)
