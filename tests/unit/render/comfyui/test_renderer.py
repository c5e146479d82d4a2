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
from moyin.errors import InvalidGraph, MoyinError, ServiceUnavailable, StackError, WorkerLost
from moyin.render.comfyui import client, session
from moyin.render.comfyui import renderer as renderer_module
from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.options import ComfyOptions, Isolation
from moyin.render.comfyui.outputs import OutputStore
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.render.comfyui.session import Session
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


class Bench:
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
        written_files = WrittenFiles(self.renderer._folder)
        self.session = Session(self.process, comfyui, written_files, lambda: False, None)  # type: ignore[arg-type]
        self.renderer._supervisor.set_session(self.session)

    async def error(self, **members: object) -> MoyinError:
        request = RenderRequest(prompt_id=str(uuid.uuid4()), graph={"1": {}}, **members)  # type: ignore[arg-type]
        with pytest.raises(MoyinError) as exc_info:
            [_ async for _ in self.renderer.render(request)]
        return exc_info.value


@pytest.fixture
async def new_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[BlobStore], Bench]]:
    monkeypatch.setattr(client, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    monkeypatch.setattr(session, "_EXIT_SECONDS", 0.05)
    is_over = asyncio.Event()

    async def never_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.close()

    address = str(tmp_path / "comfyui.sock")
    server = await asyncio.start_unix_server(never_answer, address)
    async with server, ComfyClient(address, "c", HostPathFilter({})) as comfyui:
        yield lambda blobs: Bench(tmp_path, blobs, comfyui)
        is_over.set()
        await asyncio.sleep(0.01)


async def test_hanging_comfyui_is_replaced_and_the_prompt_not_blamed(
    new_bench: Callable[[BlobStore], Bench], tmp_path: Path
) -> None:
    bench = new_bench(BlobStore(f"file://{tmp_path / 'blobs'}"))
    broken_task = asyncio.create_task(bench.session.wait_until_broken())
    error = await bench.error()
    assert isinstance(error, WorkerLost)
    assert error.details == {}
    assert await asyncio.wait_for(broken_task, 1) == "its process hung"
    assert not (await bench.renderer.status()).ready


async def test_dead_comfyui_is_not_mistaken_for_a_hanging_one(
    new_bench: Callable[[BlobStore], Bench], tmp_path: Path
) -> None:
    bench = new_bench(BlobStore(f"file://{tmp_path / 'blobs'}"))
    bench.process.exited.set_result(-11)
    assert (await bench.error()).details == {"ended": "comfyui"}


async def test_failing_artifact_store_is_retried(
    new_bench: Callable[[BlobStore], Bench], tmp_path: Path
) -> None:
    class Stale(BlobStore):
        async def copy_to(self, sha256: str, path: Path) -> None:
            raise OSError(116, "Stale file handle")

    bench = new_bench(Stale(f"file://{tmp_path / 'blobs'}"))
    error = await bench.error(files={f"moyin/{'0' * 64}.png": "0" * 64})
    assert isinstance(error, ServiceUnavailable)
    assert error.retryable


async def test_inputs_of_concurrent_renders_stay_within_the_limit(
    new_bench: Callable[[BlobStore], Bench], tmp_path: Path
) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    bench = new_bench(blobs)
    requests = []
    for number in range(160):
        sha256 = await blobs.put(number.to_bytes(4, "big") * 250)
        name = f"moyin/{sha256}.png"
        requests.append(RenderRequest(prompt_id=name, graph={"1": {}}, files={name: sha256}))
    folder = tmp_path / "run"
    for start in range(0, len(requests), 8):
        await asyncio.gather(*map(bench.renderer.prepare, requests[start : start + 8]))
    staged_bytes = sum(path.stat().st_size for path in folder.rglob("staging/*"))
    assert 0 < staged_bytes <= 40 * 1000


async def test_strict_comfyui_does_not_start_without_confinement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Path:
        raise StackError("can't confine ComfyUI (no permission): allow user namespaces")

    monkeypatch.setattr("moyin.render.comfyui.process.require_confinement", refuse)
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
        assert message in await _error_of(renderer)
        with pytest.raises(ServiceUnavailable):
            await renderer.validate({})
        await renderer.close()


async def _error_of(renderer: ComfyRenderer) -> str:
    async def reported() -> str | None:
        return (await renderer.status()).error

    error: str = await eventually(reported)
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


PRICED = RenderRequest(
    prompt_id="5f0c9a52-5c3f-4a4c-9a43-1f0f4d1c2b3a",
    graph={"1": {}},
    account=RenderAccount(
        owner="ann", job_id="j", pool="p", price=RenderPrice(usd_per_gpu_hour=Decimal(1))
    ),
)


@pytest.fixture
async def accepting_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bench, AcceptingComfyUI]:
    monkeypatch.setattr(renderer_module, "_POLL_SECONDS", 0.01)
    comfyui = AcceptingComfyUI()
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    client: Any = comfyui
    bench = Bench(tmp_path, blobs, client)
    bench.renderer._outputs = OutputStore(bench.session.written_files, blobs, 1000)
    return bench, comfyui


async def test_each_follower_and_the_status_report_the_same_run(
    accepting_bench: tuple[Bench, AcceptingComfyUI],
) -> None:
    bench, comfyui = accepting_bench

    async def follow() -> list[RenderRun]:
        events = [event async for event in bench.renderer.render(PRICED)]
        return [event for event in events if isinstance(event, RenderRun)]

    tasks = [asyncio.create_task(follow()) for _ in range(2)]

    async def find_open() -> RenderRun | None:
        return next(iter((await bench.renderer.status()).runs), None)

    open_run = await eventually(find_open)
    assert not open_run.is_ended
    status = HistoryStatus(messages=[("execution_success", {})])
    comfyui.state = PromptState(queued=False, entry=HistoryEntry(status=status))
    comfyui.is_over.set()
    [run], [same_run] = await asyncio.gather(*tasks)
    assert (run, run.id, run.error) == (same_run, open_run.id, None)
    assert run.seconds >= open_run.seconds
    assert (await bench.renderer.status()).runs == (run,)
    assert await follow() == [run], "the result is remembered, and nothing was executed"
    assert (await bench.renderer.results())[PRICED.prompt_id].runs == (run,)
    await bench.renderer.settle([run.id])
    assert (await bench.renderer.status()).runs == ()


async def test_cancelled_prompt_has_a_run(accepting_bench: tuple[Bench, AcceptingComfyUI]) -> None:
    bench, _ = accepting_bench
    task = asyncio.create_task(bench.error(account=PRICED.account))

    async def find_open() -> RenderRun | None:
        return next(iter((await bench.renderer.status()).runs), None)

    run = await eventually(find_open)
    await bench.renderer.cancel(run.prompt_id)
    await task
    [ended_run] = (await bench.renderer.status()).runs
    assert (ended_run.id, ended_run.error, ended_run.is_ended) == (run.id, "cancelled", True)


async def test_refused_graph_has_no_run(accepting_bench: tuple[Bench, AcceptingComfyUI]) -> None:
    bench, comfyui = accepting_bench
    comfyui.refusal = InvalidGraph("no such node")
    assert isinstance(await bench.error(account=PRICED.account), InvalidGraph)
    assert (await bench.renderer.status()).runs == ()
