"""Tests a renderer whose ComfyUI, store or sandbox fails; no ComfyUI runs here."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.domain.renderer import RenderRequest
from moyin.errors import (
    InvalidGraph,
    MoyinError,
    RenderFailed,
    ServiceUnavailable,
    StackError,
    WorkerLost,
)
from moyin.render.comfyui import client, session
from moyin.render.comfyui import renderer as renderer_module
from moyin.render.comfyui.bridge.guard import MOYIN_KEY
from moyin.render.comfyui.bridge.tenants import TENANT_KEY
from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.options import ComfyOptions, Isolation
from moyin.render.comfyui.outputs import OutputStore
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.prompts import RunningPrompt
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.render.comfyui.session import Session
from moyin.render.comfyui.tenant import get_request_tenant
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.wire import HistoryEntry, HistoryStatus, PromptState
from moyin.store.blobs import BlobStore
from tests.waiting import eventually


class FakeProcess:
    """A fake process that has not ended."""

    pid = 1
    was_killed = False

    def kill_new_processes(self) -> None:
        """Do nothing, because there are no new processes."""

    def __init__(self) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class RendererHarness:
    """A renderer whose ComfyUI accepts connections but never responds."""

    def __init__(self, folder: Path, blobs: BlobStore, comfyui: ComfyClient) -> None:
        self.process = FakeProcess()
        options = ComfyOptions(
            home=folder,
            python=folder,
            folder=folder / "run",
            models=folder / "models",
            input_bytes=40 * 1000,
        )
        self.renderer = ComfyRenderer(options, blobs)
        self.renderer._folder.prepare()
        self._comfyui = comfyui
        self.session = self.create_session()
        self.renderer._supervisor.set_session(self.session)

    def create_session(self) -> Session:
        written_files = WrittenFiles(self.renderer._folder)
        return Session(self.process, self._comfyui, written_files, lambda: False, None)  # type: ignore[arg-type]

    async def collect_error(self, **members: object) -> MoyinError:
        request = RenderRequest(prompt_id=str(uuid.uuid4()), graph={"1": {}}, **members)  # type: ignore[arg-type]
        with pytest.raises(MoyinError) as exc_info:
            [_ async for _ in self.renderer.render(request)]
        return exc_info.value


@pytest.fixture
async def make_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[BlobStore], RendererHarness]]:
    monkeypatch.setattr(client, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    monkeypatch.setattr(session, "_EXIT_SECONDS", 0.05)
    is_over = asyncio.Event()

    async def never_respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.close()

    address = str(tmp_path / "comfyui.sock")
    server = await asyncio.start_unix_server(never_respond, address)
    async with server, ComfyClient(address, "c", HostPathFilter({})) as comfyui:
        yield lambda blobs: RendererHarness(tmp_path, blobs, comfyui)
        is_over.set()
        await asyncio.sleep(0.01)


async def test_hanging_comfyui_is_replaced_and_the_prompt_not_blamed(
    make_harness: Callable[[BlobStore], RendererHarness], tmp_path: Path
) -> None:
    harness = make_harness(BlobStore(f"file://{tmp_path / 'blobs'}"))
    broken_task = asyncio.create_task(harness.session.wait_until_broken())
    error = await harness.collect_error()
    assert isinstance(error, WorkerLost)
    assert error.details == {}
    assert await asyncio.wait_for(broken_task, 1) == "its process hung"
    assert not (await harness.renderer.status()).ready


async def test_dead_comfyui_is_not_mistaken_for_a_hanging_one(
    make_harness: Callable[[BlobStore], RendererHarness], tmp_path: Path
) -> None:
    harness = make_harness(BlobStore(f"file://{tmp_path / 'blobs'}"))
    harness.process.exited.set_result(-11)
    assert (await harness.collect_error()).details == {"ended": "comfyui"}


async def test_failing_artifact_store_is_retried(
    make_harness: Callable[[BlobStore], RendererHarness], tmp_path: Path
) -> None:
    class FailingBlobStore(BlobStore):
        async def copy_to(self, sha256: str, path: Path) -> None:
            raise OSError(116, "Stale file handle")

    harness = make_harness(FailingBlobStore(f"file://{tmp_path / 'blobs'}"))
    error = await harness.collect_error(files={f"moyin/{'0' * 64}.png": "0" * 64})
    assert isinstance(error, ServiceUnavailable)
    assert error.retryable


async def test_inputs_of_concurrent_renders_stay_within_the_limit(
    make_harness: Callable[[BlobStore], RendererHarness], tmp_path: Path
) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    harness = make_harness(blobs)
    requests = []
    for number in range(160):
        sha256 = await blobs.put(number.to_bytes(4, "big") * 250)
        name = f"moyin/{sha256}.png"
        requests.append(RenderRequest(prompt_id=name, graph={"1": {}}, files={name: sha256}))
    folder = tmp_path / "run"
    for start in range(0, len(requests), 8):
        await asyncio.gather(*map(harness.renderer.prepare, requests[start : start + 8]))
    staged_bytes = sum(path.stat().st_size for path in folder.rglob("staging/*"))
    assert 0 < staged_bytes <= 40 * 1000


async def test_tenants_who_fetch_files_at_once_change_the_process_once_each(
    make_harness: Callable[[BlobStore], RendererHarness],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = make_harness(BlobStore(f"file://{tmp_path / 'blobs'}"))
    renderer, supervisor = harness.renderer, harness.renderer._supervisor
    renderer._options = replace(renderer._options, process_per_tenant=True)
    tenants_by_session: dict[Session, list[str]] = {}

    async def fetch_slowly(_: RenderRequest) -> None:
        await asyncio.sleep(0.01)

    async def execute(prompt: RunningPrompt) -> None:
        async with renderer._acquire_session(prompt) as present:
            tenants = tenants_by_session.setdefault(present, [])
            tenants.append(get_request_tenant(prompt.request))
            await asyncio.sleep(0)
        raise RenderFailed("executed")

    def start_another(old_session: Session) -> None:
        supervisor.change_count += 1
        supervisor.replace_session(old_session)
        asyncio.get_running_loop().call_soon(supervisor.set_session, harness.create_session())

    monkeypatch.setattr(renderer, "_fetch_inputs", fetch_slowly)
    monkeypatch.setattr(renderer, "_execute", execute)
    monkeypatch.setattr(supervisor, "change_process", start_another)
    tenants = ("ann", "bob", "cid", "bob")
    errors = await asyncio.gather(
        *(harness.collect_error(extra_data={MOYIN_KEY: {TENANT_KEY: name}}) for name in tenants)
    )
    assert [error.message for error in errors] == ["executed"] * 4
    assert sorted(tenants_by_session.values()) == [["ann"], ["bob", "bob"], ["cid"]]
    assert supervisor.change_count == 2


async def test_strict_comfyui_does_not_start_without_confinement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_confinement() -> Path:
        raise StackError("can't confine ComfyUI (no permission): allow user namespaces")

    monkeypatch.setattr("moyin.render.comfyui.process.require_confinement", refuse_confinement)
    options = ComfyOptions(
        home=tmp_path,
        python=tmp_path / "python",
        folder=tmp_path / "run",
        models=tmp_path / "models",
        start_timeout=1,
    )
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    for isolation, message in (
        (Isolation.STRICT, "can't confine"),
        (Isolation.FILES, "No such file"),
    ):
        renderer = ComfyRenderer(replace(options, isolation=isolation), blobs)
        await renderer.start()
        assert message in await _wait_for_error(renderer)
        with pytest.raises(ServiceUnavailable):
            await renderer.validate({})
        await renderer.close()


async def _wait_for_error(renderer: ComfyRenderer) -> str:
    async def read_error() -> str | None:
        return (await renderer.status()).error

    error: str = await eventually(read_error)
    return error


class AcceptingComfyUI:
    """A fake ComfyUI that accepts prompts, and executes them until the test ends them."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()
        self.state = PromptState(queued=True)
        self.refusal: MoyinError | None = None

    async def submit(self, prompt_id: str, graph: object, **_: object) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def get_prompt_state(self, prompt_id: str) -> PromptState:
        await self.is_over.wait()
        return self.state

    async def interrupt(self, prompt_id: str) -> None:
        self.state = PromptState(queued=False)
        self.is_over.set()


PRICED_REQUEST = RenderRequest(
    prompt_id="5f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3a",
    graph={"1": {}},
    account=RenderAccount(
        owner="ann", job_id="j", pool="p", price=RenderPrice(usd_per_gpu_hour=Decimal(1))
    ),
)


@pytest.fixture
async def accepting_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RendererHarness, AcceptingComfyUI]:
    monkeypatch.setattr(renderer_module, "_POLL_SECONDS", 0.01)
    comfyui = AcceptingComfyUI()
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    client: Any = comfyui
    harness = RendererHarness(tmp_path, blobs, client)
    harness.renderer._outputs = OutputStore(harness.session.written_files, blobs, 1000)
    return harness, comfyui


async def test_each_follower_and_the_status_report_the_same_run(
    accepting_harness: tuple[RendererHarness, AcceptingComfyUI],
) -> None:
    harness, comfyui = accepting_harness

    async def follow_runs() -> list[RenderRun]:
        events = [event async for event in harness.renderer.render(PRICED_REQUEST)]
        return [event for event in events if isinstance(event, RenderRun)]

    tasks = [asyncio.create_task(follow_runs()) for _ in range(2)]

    async def find_open_run() -> RenderRun | None:
        return next(iter((await harness.renderer.status()).runs), None)

    open_run = await eventually(find_open_run)
    assert not open_run.is_ended
    status = HistoryStatus(messages=[("execution_success", {})])
    comfyui.state = PromptState(queued=False, entry=HistoryEntry(status=status))
    comfyui.is_over.set()
    [run], [same_run] = await asyncio.gather(*tasks)
    assert (run, run.id, run.error) == (same_run, open_run.id, None)
    assert run.seconds >= open_run.seconds
    assert (await harness.renderer.status()).runs == (run,)
    assert await follow_runs() == [run], "the result is remembered, and nothing was executed"
    assert (await harness.renderer.results())[PRICED_REQUEST.prompt_id].runs == (run,)
    await harness.renderer.settle([run.id])
    assert (await harness.renderer.status()).runs == ()


async def test_cancelled_prompt_is_recorded_as_a_run(
    accepting_harness: tuple[RendererHarness, AcceptingComfyUI],
) -> None:
    harness, _ = accepting_harness
    task = asyncio.create_task(harness.collect_error(account=PRICED_REQUEST.account))

    async def find_open_run() -> RenderRun | None:
        return next(iter((await harness.renderer.status()).runs), None)

    run = await eventually(find_open_run)
    await harness.renderer.cancel(run.prompt_id)
    await task
    [ended_run] = (await harness.renderer.status()).runs
    assert (ended_run.id, ended_run.error, ended_run.is_ended) == (run.id, "cancelled", True)


async def test_refused_graph_has_no_run(
    accepting_harness: tuple[RendererHarness, AcceptingComfyUI],
) -> None:
    harness, comfyui = accepting_harness
    comfyui.refusal = InvalidGraph("no such node")
    assert isinstance(await harness.collect_error(account=PRICED_REQUEST.account), InvalidGraph)
    assert (await harness.renderer.status()).runs == ()
