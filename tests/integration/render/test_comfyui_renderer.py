"""Tests a real ComfyUI through the renderer interface."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.prompt import PromptRecord
from moyin.domain.render_run import RenderRun
from moyin.domain.renderer import (
    ExecutionFinished,
    ExecutionStarted,
    RenderEvent,
    RenderProgress,
    RenderRequest,
    RenderSucceeded,
)
from moyin.errors import (
    InvalidGraph,
    OutOfMemory,
    RenderFailed,
    ServiceUnavailable,
    StepFailed,
    WorkerLost,
)
from moyin.render.comfyui.bridge.guard import MOYIN_KEY
from moyin.render.comfyui.bridge.tenants import TENANT_KEY
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.prompts import RunningPrompt
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.render.protocol.graph import make_input_name
from moyin.render.protocol.wire import EventMessage
from moyin.store.blobs import Blob, BlobStore
from tests.integration.render.fixtures import (
    PNG,
    TEST_NODES,
    bad_nodes,
    blobs,
    build_failing_graph,
    build_picture_graph,
    build_request,
    build_sleepy_graph,
    build_upscaled_graph,
    list_comfyui_pids,
    options,
    render_events,
    render_successfully,
    renderer,
    write_models,
)
from tests.stack import RecordMeasurement
from tests.waiting import eventually

__all__ = ["bad_nodes", "blobs", "options", "renderer"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_picture_is_rendered_and_stored(
    renderer: ComfyRenderer, blobs: BlobStore, options: ComfyOptions
) -> None:
    prompt_id = str(uuid.uuid4())
    success = await render_successfully(renderer, build_picture_graph(), prompt_id)

    [file] = success.files
    assert (file.name, file.media_type, file.node, file.slot, file.temporary) == (
        "p_00001_.png", "image/png", "2", "images", False,
    )  # fmt: skip
    picture_bytes = await blobs.get(file.sha256)
    assert picture_bytes.startswith(PNG)
    assert len(picture_bytes) == file.size
    assert not list(options.folder.rglob("*.png")), "the store has it, nobody else"


async def test_the_saved_graph_is_the_one_that_was_sent(
    renderer: ComfyRenderer, blobs: BlobStore
) -> None:
    prompt_id = str(uuid.uuid4())
    success = await render_successfully(renderer, build_picture_graph(), prompt_id)
    picture_bytes = await blobs.get(success.files[0].sha256)
    assert b'"filename_prefix": "p"' in picture_bytes
    assert prompt_id.encode() not in picture_bytes


async def test_progress_rises_to_the_number_of_nodes(renderer: ComfyRenderer) -> None:
    started_at = time.monotonic()
    seen_events = await render_events(renderer, build_sleepy_graph(4.0))
    elapsed_seconds = time.monotonic() - started_at
    progress_events = [event for event in seen_events if isinstance(event, RenderProgress)]
    assert 3 <= len(progress_events) <= 4 * (time.monotonic() - started_at) + 2, (
        "four a second at most"
    )
    assert [p.value for p in progress_events] == sorted(p.value for p in progress_events)
    assert any(0 < p.value < 3 and p.node == "3" for p in progress_events)
    assert all(p.max == 3 for p in progress_events)
    assert seen_events.count(ExecutionStarted()) == 1
    assert seen_events[-4] == ExecutionFinished()
    assert isinstance(seen_events[-3], RenderRun)
    assert 4.0 <= seen_events[-3].seconds <= elapsed_seconds
    assert isinstance(seen_events[-2], PromptRecord)


async def test_an_identical_graph_gives_the_second_job_its_own_result(
    renderer: ComfyRenderer,
) -> None:
    graph = build_picture_graph()
    first_result, second_result = (
        await render_successfully(renderer, graph),
        await render_successfully(renderer, graph),
    )
    assert first_result == second_result
    # Also while the first one's files are being stored.
    graph = build_sleepy_graph(0.2)
    third_result, fourth_result = await asyncio.gather(
        render_successfully(renderer, graph), render_successfully(renderer, graph)
    )
    assert third_result == fourth_result


async def test_a_cached_picture_holds_no_graph_of_another_tenants(
    renderer: ComfyRenderer, blobs: BlobStore
) -> None:
    graph = build_picture_graph()

    async def render_and_read(tenant: str, note: str) -> bytes:
        extra_data = {"extra_pnginfo": {"workflow": note}, MOYIN_KEY: {TENANT_KEY: tenant}}
        render_request = replace(build_request(graph), extra_data=extra_data)
        [*_, last_event] = [event async for event in renderer.render(render_request)]
        assert isinstance(last_event, RenderSucceeded)
        return await blobs.get(last_event.files[0].sha256)

    assert b"of ann" in await render_and_read("ann", "a note of ann's")
    assert b"of bob" in await render_and_read("bob", "a note of bob's")
    # A tenant's own may be the one that it made before.
    assert b"of bob" in await render_and_read("bob", "another note of bob's")


async def test_the_cache_shows_a_tenant_only_hits_of_its_own(
    renderer: ComfyRenderer, options: ComfyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_name = f"{uuid.uuid4().hex}.safetensors"
    if not (options.models / "upscale_models").exists():
        await asyncio.to_thread(write_models, options.python, options.models, model_name)
    [model] = (options.models / "upscale_models").iterdir()
    seen: list[tuple[str, str]] = []
    process_event = renderer._process_prompt_event

    def record_event(prompt: RunningPrompt, message: EventMessage) -> None:
        process_event(prompt, message)
        if message.type in ("execution_cached", "executing", "executed"):
            data = {key: message.data.get(key) for key in ("node", "nodes")}
            seen.append((message.type, json.dumps(data, sort_keys=True)))

    monkeypatch.setattr(renderer, "_process_prompt_event", record_event)

    async def collect_events(tenant: str, graph: dict[str, Any]) -> list[Any]:
        seen.clear()
        request = replace(build_request(graph), extra_data={MOYIN_KEY: {TENANT_KEY: tenant}})
        events = [event async for event in renderer.render(request)]
        [record] = [event for event in events if isinstance(event, PromptRecord)]
        names = [(name, data.get("nodes")) for name, data in record.messages]
        return [*seen, *names]

    graph = build_upscaled_graph(model.name)
    of_ann = await collect_events("ann", graph)
    # Also the model that Ann has loaded is reported as if Bob's prompt had loaded it.
    of_bob = await collect_events("bob", graph)
    again = await collect_events("bob", graph)
    of_nobody = await collect_events("cid", build_upscaled_graph(model.name))
    assert of_bob == of_ann == of_nobody
    [own_hits] = [
        nodes for name, nodes in again if name == "execution_cached" and isinstance(nodes, list)
    ]
    assert sorted(own_hits) == sorted(graph), "a tenant has hits of its own"


async def test_lost_cached_outputs_are_rendered_again(
    renderer: ComfyRenderer,
) -> None:
    graph = build_picture_graph()
    first_result = await render_successfully(renderer, graph)
    assert renderer._outputs is not None
    renderer._outputs._stored.clear()
    assert await render_successfully(renderer, graph) == first_result


async def test_previews_are_marked_and_text_is_kept(renderer: ComfyRenderer) -> None:
    graph = build_picture_graph()
    graph["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    graph["10"] = {"class_type": "PreviewAny", "inputs": {"source": "a word"}}
    success = await render_successfully(renderer, graph)
    assert [(file.node, file.temporary) for file in success.files] == [("2", True)]
    assert success.values == {"10": {"text": ["a word"]}}


async def test_the_same_prompt_is_rendered_once(renderer: ComfyRenderer) -> None:
    prompt_id = str(uuid.uuid4())
    graph = build_sleepy_graph(1.0)
    started_at = time.monotonic()
    first_result, second_result = await asyncio.gather(
        render_successfully(renderer, graph, prompt_id),
        render_successfully(renderer, graph, prompt_id),
    )
    assert first_result == second_result
    assert time.monotonic() - started_at < 1.9, "two in a row would take two seconds"
    started_at = time.monotonic()
    assert await render_successfully(renderer, graph, prompt_id) == first_result
    assert time.monotonic() - started_at < 0.1, "a finished one is remembered"


async def test_a_watcher_that_leaves_and_comes_back_finds_its_prompt(
    renderer: ComfyRenderer,
) -> None:
    render_request = build_request(build_sleepy_graph(1.0))
    async for event in renderer.render(render_request):
        assert isinstance(event, ExecutionStarted | RenderProgress)
        break
    assert render_request.prompt_id in (await renderer.status()).running
    success = await render_successfully(
        renderer, dict(render_request.graph), render_request.prompt_id
    )
    assert len(success.files) == 1


@pytest.mark.parametrize(
    ("broken_node", "error_type", "message"),
    [
        ({"class_type": "NoSuchNode", "inputs": {}}, "invalid_prompt", "NoSuchNode"),
        (
            {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "p"}},
            "prompt_outputs_failed_validation",
            "failed validation",
        ),
        (5, "invalid_prompt", "not an object"),
    ],
)
async def test_invalid_graph_raises_comfyuis_errors(
    renderer: ComfyRenderer, broken_node: object, error_type: str, message: str
) -> None:
    graph = build_picture_graph()
    graph["2"] = broken_node
    body = await renderer.validate(graph)
    assert body is not None
    assert body["error"]["type"] == error_type
    with pytest.raises(InvalidGraph, match=message) as exc_info:
        await render_events(renderer, graph)
    assert exc_info.value.details == body
    assert "error" not in await renderer.validate(build_picture_graph())


async def test_unchecked_inputs_are_reported(renderer: ComfyRenderer) -> None:
    """ComfyUI accepts values within the reported bounds, and rejects values outside of them."""
    graph = build_picture_graph()
    unchecked_inputs = (await renderer.validate(graph))["free"]
    [(node, node_ranges)] = [
        (node, input_ranges)
        for node, input_ranges in unchecked_inputs.items()
        if "width" in input_ranges
    ]
    input_type, minimum, maximum = node_ranges["width"]
    assert (input_type, node_ranges["color"]) == ("INT", ["INT", 0, 0xFFFFFF])
    for value, is_valid in (
        (minimum, True),
        (maximum, True),
        (minimum - 1, False),
        (maximum + 1, False),
    ):
        graph[node]["inputs"]["width"] = value
        assert ("error" not in await renderer.validate(graph)) == is_valid
    file_graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "moyin/" + "0" * 64 + ".png"}}
    }
    file_graph["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    assert "1" not in (await renderer.validate(file_graph))["free"], "it looks at files"


async def test_validating_renders_nothing(renderer: ComfyRenderer) -> None:
    known_prompts = (await renderer.status()).known
    assert "error" not in await renderer.validate(build_sleepy_graph(5))
    started_at = time.monotonic()
    await render_successfully(renderer, build_picture_graph())
    assert time.monotonic() - started_at < 2
    assert len((await renderer.status()).known) == len(known_prompts) + 1


async def test_a_failing_node_is_named(renderer: ComfyRenderer) -> None:
    with pytest.raises(RenderFailed, match=r"node 3 \(TestSyncError\) failed") as exc_info:
        await render_events(renderer, build_failing_graph())
    assert exc_info.value.details["node_id"] == "3"
    assert exc_info.value.details["node_type"] == "TestSyncError"


async def test_cycle_in_an_expansion_fails_the_render(renderer: ComfyRenderer) -> None:
    """A cycle in an expansion fails the render, although ComfyUI's history calls it a success.

    Only the messages in the history contain the error.
    """
    graph = build_picture_graph()
    graph["3"] = {
        "class_type": "TestDynamicDependencyCycle",
        "inputs": {"input1": ["1", 0], "input2": ["1", 0]},
    }
    graph["2"]["inputs"]["images"] = ["3", 0]
    with pytest.raises(RenderFailed, match="cycle") as exc_info:
        await render_events(renderer, graph)
    assert exc_info.value.details["node_id"] == "3"
    assert len((await render_successfully(renderer, build_picture_graph())).files) == 1


async def test_cancel_stops_only_the_named_prompt(renderer: ComfyRenderer) -> None:
    cancelled_request, other_request = (
        build_request(build_sleepy_graph(30)),
        build_request(build_sleepy_graph(0.5)),
    )
    render_tasks = [
        asyncio.create_task(render_successfully(renderer, dict(r.graph), r.prompt_id))
        for r in (cancelled_request, other_request)
    ]
    await eventually(lambda: _is_running(renderer, cancelled_request.prompt_id))
    await asyncio.sleep(0.5)
    started_at = time.monotonic()
    await renderer.cancel(cancelled_request.prompt_id)
    with pytest.raises(RenderFailed):
        await render_tasks[0]
    assert time.monotonic() - started_at < 2
    await renderer.cancel(cancelled_request.prompt_id)
    await renderer.cancel(str(uuid.uuid4()))
    assert len((await render_tasks[1]).files) == 1


async def test_cancel_takes_a_waiting_prompt_from_the_queue(renderer: ComfyRenderer) -> None:
    running_request, waiting_request = (
        build_request(build_sleepy_graph(2)),
        build_request(build_sleepy_graph(30)),
    )
    first_task = asyncio.create_task(
        render_successfully(renderer, dict(running_request.graph), running_request.prompt_id)
    )
    await asyncio.sleep(0.3)
    second_task = asyncio.create_task(
        render_successfully(renderer, dict(waiting_request.graph), waiting_request.prompt_id)
    )
    await asyncio.sleep(0.3)
    await renderer.cancel(waiting_request.prompt_id)
    with pytest.raises(RenderFailed, match="cancelled"):
        await second_task
    assert len((await first_task).files) == 1


async def test_a_retry_does_not_share_the_end_of_a_cancelled_run(renderer: ComfyRenderer) -> None:
    cancelled_request = build_request(build_sleepy_graph(30))
    prompt_id = cancelled_request.prompt_id
    cancelled_task = asyncio.create_task(
        render_successfully(renderer, dict(cancelled_request.graph), prompt_id)
    )
    await eventually(lambda: _is_running(renderer, prompt_id))
    cancellation = asyncio.create_task(renderer.cancel(prompt_id))
    # The cancellation has begun, and ComfyUI still executes the prompt.
    await asyncio.sleep(0)
    assert prompt_id not in (await renderer.status()).known
    assert len((await render_successfully(renderer, build_picture_graph(), prompt_id)).files) == 1
    await cancellation
    with pytest.raises(RenderFailed):
        await cancelled_task


async def test_a_failed_prompt_may_be_tried_again(renderer: ComfyRenderer) -> None:
    prompt_id = str(uuid.uuid4())
    with pytest.raises(RenderFailed):
        await render_events(renderer, build_failing_graph(), prompt_id)
    assert len((await render_successfully(renderer, build_picture_graph(), prompt_id)).files) == 1


async def test_an_input_file_is_loaded_from_the_store(
    renderer: ComfyRenderer, blobs: BlobStore
) -> None:
    picture_file = (await render_successfully(renderer, build_picture_graph(0xFF0000))).files[0]
    artifact = Artifact(
        id="art_1",
        name="red.png",
        media_type="image/png",
        size=picture_file.size,
        sha256=picture_file.sha256,
    )
    name = make_input_name(artifact)
    graph = build_picture_graph()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    render_request = RenderRequest(
        prompt_id=str(uuid.uuid4()), graph=graph, files={name: artifact.sha256}
    )
    seen_events = [event async for event in renderer.render(render_request)]
    assert isinstance(seen_events[-1], RenderSucceeded)
    nodes = json.loads(await renderer.get("/object_info") or b"")
    listed_files = nodes["LoadImage"]["input"]["required"]["image"][0]
    assert listed_files == [], "nobody may see what others have uploaded"

    missing_file_request = RenderRequest(
        prompt_id=str(uuid.uuid4()), graph=graph, files={f"moyin/{'1' * 64}.png": "1" * 64}
    )
    with pytest.raises(StepFailed, match="artifact store"):
        [event async for event in renderer.render(missing_file_request)]


async def test_a_killed_comfyui_loses_its_prompt_and_comes_back(
    renderer: ComfyRenderer, options: ComfyOptions
) -> None:
    task = asyncio.create_task(render_events(renderer, build_sleepy_graph(30)))
    await asyncio.sleep(0.5)
    pid = (await renderer.status()).pid
    assert pid is not None
    os.kill(pid, 9)
    with pytest.raises(WorkerLost) as exc_info:
        await task
    assert "ended" not in exc_info.value.details, "no fault of the prompt's"
    assert (await render_successfully(renderer, build_picture_graph())).files
    status = await renderer.status()
    assert status.pid not in (None, pid)
    assert list_comfyui_pids(options.folder) == [status.pid]


async def test_render_succeeds_without_events_of_the_socket(
    renderer: ComfyRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.render.comfyui.prompts.RunningPrompt.process_event", lambda *_: None)
    monkeypatch.setattr("moyin.render.comfyui.renderer._POLL_SECONDS", 0.5)
    assert len((await render_successfully(renderer, build_sleepy_graph(0.2))).files) == 1


async def test_renderer_survives_bad_nodes(
    options: ComfyOptions,
    blobs: BlobStore,
    tmp_path: Path,
    bad_nodes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check several scenarios on one ComfyUI, because its start takes long."""
    monkeypatch.setattr("moyin.render.comfyui.renderer._INTERRUPT_SECONDS", 0.5)
    monkeypatch.setattr("moyin.render.comfyui.session._CHECK_SECONDS", 0.3)
    nodes = (bad_nodes, options.home / TEST_NODES)
    warm_up = json.dumps({"1": {"class_type": "Room", "inputs": {"failures": 1}}})
    async with _run_renderer(
        replace(
            options,
            folder=tmp_path / "run",
            progress_timeout=1.0,
            custom_nodes=nodes,
            warm_up=warm_up,
        ),
        blobs,
    ) as renderer:
        await _check_gc_ignores_imported_objects(renderer)
        await _check_reused_file_name(renderer, monkeypatch)
        await _check_retry_after_freeing_memory(renderer)
        await _check_hung_node_fails_its_prompt(renderer)
        await _check_zombie_is_replaced(renderer)
        assert list(renderer._folder.done.iterdir()) == [], "nothing of any prompt is left"
        assert list_comfyui_pids(tmp_path) == [(await renderer.status()).pid]
    assert list_comfyui_pids(tmp_path) == []


async def _check_gc_ignores_imported_objects(renderer: ComfyRenderer) -> None:
    success = await render_successfully(renderer, {"1": {"class_type": "Rests", "inputs": {}}})
    # Torch and ComfyUI's own nodes are some half a million.
    assert int(success.values["1"]["text"][0]) > 100_000


async def _check_reused_file_name(renderer: ComfyRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that each prompt's file is stored, although the next prompt reuses the file's name.

    The next prompt writes its file while the first one is still being stored.
    """
    blobs, folder = renderer._blobs, renderer._folder
    store_event, put_stream = asyncio.Event(), blobs.put_stream

    async def put_later(file: IO[bytes], limit: int) -> Blob:
        await store_event.wait()
        return await put_stream(file, limit)

    async def follow(node_text: str, seen_events: list[RenderEvent]) -> None:
        graph = {"1": {"class_type": "Latest", "inputs": {"text": node_text}}}
        async for event in renderer.render(build_request(graph)):
            seen_events.append(event)

    monkeypatch.setattr(blobs, "put_stream", put_later)
    texts = ["Ada's", "Bob's", "Ada's"]
    events_by_prompt: list[list[RenderEvent]] = [[] for _ in texts]
    tasks = [
        asyncio.create_task(follow(*pair)) for pair in zip(texts, events_by_prompt, strict=True)
    ]
    await eventually(
        lambda: all(ExecutionFinished() in prompt_events for prompt_events in events_by_prompt)
    )
    store_event.set()
    await asyncio.gather(*tasks)
    stored_texts = []
    for *_, last_event in events_by_prompt:
        assert isinstance(last_event, RenderSucceeded)
        stored_texts.append((await blobs.get(last_event.files[0].sha256)).decode())
    assert stored_texts == texts
    emptied_folders = [*folder.writable, folder.done]
    assert not [p for folder_path in emptied_folders for p in folder_path.rglob("*") if p.is_file()]


async def _check_retry_after_freeing_memory(renderer: ComfyRenderer) -> None:
    greedy_graph = {"1": {"class_type": "Greedy", "inputs": {}}}
    # The warm-up graph has set it up for one failure.
    assert (await render_successfully(renderer, greedy_graph)).values == {"1": {"text": ["fits"]}}
    await render_events(renderer, {"1": {"class_type": "Room", "inputs": {"failures": 2}}})
    with pytest.raises(OutOfMemory, match="no room"):
        await render_events(renderer, greedy_graph)
    assert (await render_successfully(renderer, build_picture_graph())).files


async def _check_hung_node_fails_its_prompt(renderer: ComfyRenderer) -> None:
    pid = (await renderer.status()).pid
    with pytest.raises(RenderFailed, match=r"no progress within .* of 1 s"):
        await render_events(renderer, {"1": {"class_type": "Stuck", "inputs": {}}})
    assert (await render_successfully(renderer, build_picture_graph())).files
    assert (await renderer.status()).pid != pid


async def _check_zombie_is_replaced(renderer: ComfyRenderer) -> None:
    """Check that ComfyUI is restarted if it answers HTTP but its thread for prompts is dead."""
    pid = (await renderer.status()).pid
    with pytest.raises(WorkerLost, match="executes prompts has ended") as exc_info:
        await render_events(renderer, {"1": {"class_type": "Die", "inputs": {}}})
    assert exc_info.value.details == {"ended": "comfyui"}
    assert (await render_successfully(renderer, build_picture_graph())).files
    assert (await renderer.status()).pid != pid


async def test_the_reason_of_a_failed_start_is_shown(
    options: ComfyOptions, blobs: BlobStore, tmp_path: Path
) -> None:
    broken_renderer = ComfyRenderer(
        replace(options, folder=tmp_path / "run", flags=("--no-such-flag",), start_timeout=8),
        blobs,
    )
    await broken_renderer.start()
    try:
        with pytest.raises(ServiceUnavailable):
            await render_events(broken_renderer, build_picture_graph())
        assert "--no-such-flag" in ((await broken_renderer.status()).error or "")
        with pytest.raises(ServiceUnavailable):
            await broken_renderer.validate(build_picture_graph())
    finally:
        await broken_renderer.close()


@asynccontextmanager
async def _run_renderer(options: ComfyOptions, blobs: BlobStore) -> AsyncIterator[ComfyRenderer]:
    renderer = ComfyRenderer(options, blobs)
    await renderer.start()
    try:
        await render_successfully(renderer, build_picture_graph())
        yield renderer
    finally:
        await renderer.close()


async def _is_running(renderer: ComfyRenderer, prompt_id: str) -> bool:
    return prompt_id in (await renderer.status()).running


async def test_a_process_per_tenant_is_replaced_before_another_tenant_uses_it(
    options: ComfyOptions,
    blobs: BlobStore,
    tmp_path: Path,
    record_measurement: RecordMeasurement,
) -> None:
    per_tenant = replace(options, folder=tmp_path / "run", process_per_tenant=True)
    renderer = ComfyRenderer(per_tenant, blobs)
    await renderer.start()

    async def render_for(tenant: str) -> int | None:
        extra_data = {MOYIN_KEY: {TENANT_KEY: tenant}}
        request = replace(build_request(build_picture_graph()), extra_data=extra_data)
        [*_, last_event] = [event async for event in renderer.render(request)]
        assert isinstance(last_event, RenderSucceeded)
        return (await renderer.status()).pid

    try:
        await renderer._supervisor.wait_for_session()
        graph = build_picture_graph()
        assert await renderer.validate(graph, tenant="ann") == {}, "its first tenant is unknown"
        nodes = await renderer.get("/object_info")
        first_pid = await render_for("ann")
        assert await render_for("ann") == first_pid
        assert (await renderer.validate(graph, tenant="ann"))["outputs"] == ["2"]
        assert await renderer.validate(graph, tenant="bob") == {}
        assert await renderer.get("/object_info") == nodes, "that of the fresh process"
        with pytest.raises(ServiceUnavailable):
            await renderer.get("/features")
        # Each gets a process of its own in turn; Ann's present one is used for what she still has.
        bob_pid, cid_pid, ann_pid = await asyncio.gather(*map(render_for, ("bob", "cid", "ann")))
        status = await renderer.status()
        assert len({first_pid, bob_pid, cid_pid}) == 3
        assert ann_pid == first_pid
        assert (status.tenant_changes, status.error) == (2, None)
        assert status.tenant in ("bob", "cid")
        record_measurement(f"change of a process's tenant: {status.start_seconds:.1f} s")
        assert await renderer.get("/features") is not None, "requested when a process was fresh"
    finally:
        await renderer.close()
