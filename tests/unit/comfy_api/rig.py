"""The farm's stores on SQLite and a folder, and a client's stream without Valkey."""

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

from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.listener import FarmEvents, Listener
from moyin.domain.job import Job, JobSpec, Progress, Step, StepKind, StepResult
from moyin.domain.prompt import ComfyPrompt, PromptFile, PromptRecord, channel_name
from moyin.domain.serialization import encode, to_plain
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameHub, FrameStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.prompts import PromptStore
from moyin.store.sql import Database
from moyin.store.uploads import UploadStore

OWNER, CLIENT = "ada", "browser"
GRAPH = {"1": {"class_type": "SaveImage", "inputs": {}}}


class Frames:
    """`FrameStore` and `FrameHub` of one client."""

    def __init__(self) -> None:
        self.earlier: list[Frame] = []
        self.files: dict[tuple[str, str], PromptFile] = {}
        self.coming: asyncio.Queue[Frame | Exception] = asyncio.Queue()

    async def newest(self, channel: str, count: int) -> list[Frame]:
        return self.earlier[-count:]

    async def file(self, prompt_id: str, path: str) -> PromptFile | None:
        return self.files.get((prompt_id, path))

    @asynccontextmanager
    async def subscribe(self, name: str, after: str | None) -> AsyncIterator[Frames]:
        yield self

    async def next(self) -> list[Frame]:
        frame = await self.coming.get()
        if isinstance(frame, Exception):
            raise frame
        return [frame]


@dataclass
class Client:
    """What a listener has told, one message after the other."""

    listener: Listener
    told: asyncio.Queue[str | bytes]
    running: asyncio.Task[None]

    async def hears(self) -> str | bytes:
        return await asyncio.wait_for(self.told.get(), 5)

    def heard_all(self) -> bool:
        return self.told.empty()


@dataclass
class Rig:
    jobs: JobStore
    prompts: PromptStore
    blobs: BlobStore
    files: FarmFiles
    frames: Frames = field(default_factory=Frames)

    async def job(
        self,
        *,
        owner: str = OWNER,
        begun: bool = False,
        graph: Mapping[str, Any] = GRAPH,
        client: str = CLIENT,
        **submitted: Any,
    ) -> Job:
        """A prompt that waits, or runs.

        Args:
            submitted: more of `NewJob`: whose key, and whether by ComfyUI's API.
        """
        step = Step(kind=StepKind.RENDER, payload=graph)
        asked = ComfyPrompt(client_id=client)
        spec = await self.blobs.put(encode(JobSpec(kind="render", steps=(step,), comfyui=asked)))
        new = NewJob(
            id=str(uuid.uuid4()),
            owner=owner,
            kind="render",
            spec=spec,
            heads=((StepKind.RENDER, "default"),),
            channel=channel_name(owner, client),
            **{"key_id": "k", "comfyui": True, **submitted},
        )
        job, _ = await self.jobs.create(new)
        if begun:
            await self.jobs.progress(job.id, 1, Progress())
        return job

    async def result(self, record: PromptRecord) -> StepResult:
        """A step's result in which the record lies."""
        output = await self.blobs.put(to_json({"record": to_plain(record)}))
        return StepResult(index=0, output=output)

    def events(self, *, tick: float = 60.0) -> FarmEvents:
        return FarmEvents(
            prompts=self.prompts,
            files=self.files,
            blobs=self.blobs,
            frames=cast(FrameStore, self.frames),
            hub=cast(FrameHub, self.frames),
            tick=tick,
        )

    @asynccontextmanager
    async def client(self, events: FarmEvents | None = None) -> AsyncIterator[Client]:
        """A client that has connected."""
        told: asyncio.Queue[str | bytes] = asyncio.Queue()
        listener = (events or self.events()).listener(OWNER, CLIENT, told.put)
        running = asyncio.create_task(listener.run())
        try:
            yield Client(listener, told, running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ready()
    frames = Frames()
    prompts, blobs = PromptStore(database), BlobStore(f"file://{tmp_path / 'blobs'}")
    files = FarmFiles(
        uploads=UploadStore(database),
        artifacts=ArtifactStore(database),
        prompts=prompts,
        blobs=blobs,
        frames=cast(FrameStore, frames),
    )
    yield Rig(JobStore(database), prompts, blobs, files, frames)
    await database.close()


def record(**changes: Any) -> PromptRecord:
    """What ComfyUI's history says of a prompt that went well."""
    plain = PromptRecord(outputs={}, meta={}, status="success", completed=True, messages=())
    return replace(plain, **changes)
