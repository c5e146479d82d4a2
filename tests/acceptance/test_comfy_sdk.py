"""Tests `comfy-sdk`, the official client of the Comfy API v2, unchanged, on a whole farm."""

from __future__ import annotations

import itertools
import struct
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from comfy_sdk import (
    AsyncComfy,
    Comfy,
    IdempotencyKeyReuse,
    InvalidWorkflow,
    JobFailed,
    MissingAsset,
    NotFound,
    OutputReady,
    Progress,
    StatusChange,
    Unauthorized,
)

from tests.chaos.client import StackClient
from tests.chaos.graphs import picture, sleepy
from tests.stack import RecordMeasurement, RunningStack

_colors = itertools.count(0x7A0000)
_PATIENCE = 120


@pytest.fixture
def address(gateway: RunningStack, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COMFY_BASE_URL", gateway.url)
    return gateway.url


@pytest.fixture
def comfy(gateway: RunningStack, address: str) -> Iterator[Comfy]:
    # Graphs are validated where an actor is up.
    stack_client = StackClient(address, gateway.api_key)
    job = stack_client.submit({"kind": "render", "workflow": picture(next(_colors))})
    stack_client.wait(job, {"succeeded"}, _PATIENCE)
    with Comfy(api_key=gateway.api_key) as client:
        yield client


@pytest.fixture
async def async_comfy(comfy: Comfy, gateway: RunningStack) -> AsyncIterator[AsyncComfy]:
    async with AsyncComfy(api_key=gateway.api_key) as client:
        yield client


def make_red_and_blue_png() -> bytes:
    """Return a PNG with a red and a blue pixel."""

    def make_chunk(chunk_type: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + chunk_type
            + data
            + struct.pack(">I", zlib.crc32(chunk_type + data))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + bytes([255, 0, 0, 0, 0, 255]))
    png = b"\x89PNG\r\n\x1a\n"
    return png + make_chunk(b"IHDR", header) + make_chunk(b"IDAT", rows) + make_chunk(b"IEND", b"")


def make_inverting_graph(image: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "p"}},
    }


def test_result_of_a_run_is_downloaded(comfy: Comfy, gateway: RunningStack, tmp_path: Path) -> None:
    job = comfy.run(comfy.workflows.from_json(picture(next(_colors))), timeout=_PATIENCE)
    [output] = job.get_outputs("2")
    assert (output.type, output.content_type, output.job_id) == ("image", "image/png", job.id)
    content = output.to_file(tmp_path / "picture.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) == output.size_bytes
    assert output.to_bytes(range=(0, 3)) == content[:4]
    copy_stream = BytesIO()
    assert output.to_stream(copy_stream) == len(content)
    assert output.get_download_url().url.startswith(gateway.url)
    # The same job everywhere.
    job_record = StackClient(gateway.url, gateway.api_key).job(job.id)
    assert (job_record["status"], job_record["artifacts"][0]["id"]) == ("succeeded", output.id)


def test_events_are_followed(comfy: Comfy, record_measurement: RecordMeasurement) -> None:
    started_at = time.monotonic()
    job = comfy.submit(comfy.workflows.from_json(sleepy(1.0, next(_colors))))
    events = list(job.events())
    assert events[-1] == StatusChange(status="succeeded")
    assert StatusChange(status="running") in events
    [output_event] = [event for event in events if isinstance(event, OutputReady)]
    assert output_event.output.to_bytes()[:4] == b"\x89PNG"  # type: ignore[index]
    progress_values = [event.value for event in events if isinstance(event, Progress)]
    assert progress_values == sorted(progress_values)
    record_measurement(f"comfy-sdk: a one-second graph, from submit to its last event, "
             f"{time.monotonic() - started_at:.1f} s")  # fmt: skip
    # Whoever comes after the end gets it at once.
    replayed_events = list(comfy.jobs.get(job.id).events())
    assert replayed_events[-1] == StatusChange(status="succeeded")


def test_cancelled_job_ends(comfy: Comfy) -> None:
    job = comfy.submit(comfy.workflows.from_json(sleepy(60, next(_colors))))
    for event in job.events():
        if isinstance(event, StatusChange) and event.status == "running":
            break
    assert job.cancel().status in ("canceling", "canceled")
    assert job.wait(timeout=_PATIENCE).status == "canceled"
    assert job.cancel().status == "canceled", "cancelling again must be no error"
    with pytest.raises(JobFailed):
        job.result()


def test_idempotency_key_makes_one_job(comfy: Comfy) -> None:
    workflow = comfy.workflows.from_json(picture(next(_colors)))
    key = f"key-{next(_colors)}"
    metadata = {"key": key}
    first_job = comfy.submit(workflow, idempotency_key=key, metadata=metadata)
    with pytest.raises(IdempotencyKeyReuse) as repeat_error:
        comfy.submit(workflow, idempotency_key=key, metadata=metadata)
    assert repeat_error.value.details is not None
    assert repeat_error.value.details["job_id"] == first_job.id
    workflow.set_input("1", "width", 16)
    with pytest.raises(IdempotencyKeyReuse):
        comfy.submit(workflow, idempotency_key=key, metadata=metadata)
    assert [job.id for job in comfy.list_jobs(metadata=metadata)] == [first_job.id]
    assert first_job.result().metadata == metadata


def test_list_continues_on_the_next_page(comfy: Comfy) -> None:
    metadata = {"list": str(next(_colors))}
    graph = comfy.workflows.from_json(picture(next(_colors)))
    ids = [comfy.submit(graph, metadata=metadata).id for _ in range(3)]
    listed_ids = [job.id for job in comfy.list_jobs(metadata=metadata, limit=2)]
    assert listed_ids == ids[::-1]
    for job_id in ids:
        comfy.jobs.get(job_id).result()


def test_a_stored_picture_is_the_input_of_a_graph(comfy: Comfy, tmp_path: Path) -> None:
    source = tmp_path / "two pixels.png"
    source.write_bytes(make_red_and_blue_png())
    asset = comfy.assets.from_file(source)
    workflow = comfy.workflows.from_json(make_inverting_graph("nothing.png"))
    workflow.set_input("1", "image", asset)
    job = comfy.run(workflow, timeout=_PATIENCE)
    [output] = job.get_outputs("3")
    assert output.to_bytes()[:4] == b"\x89PNG"
    repeated_asset = comfy.assets.from_file(source)
    assert repeated_asset.commit() != asset.id, (
        "storing the same bytes again must create another asset"
    )
    assert repeated_asset.created_new is False
    graph = job.get_workflow()
    assert graph.format == "api"
    assert graph.graph["1"]["inputs"]["image"]["info"]["id"] == asset.id
    asset_id = asset.id
    assert asset_id is not None
    asset.delete()
    with pytest.raises(NotFound):
        comfy.assets.get(asset_id)
    with pytest.raises(MissingAsset):
        comfy.submit(comfy.workflows.from_json(graph.graph))
    # What a job made can go into the next.
    made_asset = comfy.assets.get(output.id)
    workflow.set_input("1", "image", made_asset)
    second_result = comfy.run(workflow, timeout=_PATIENCE)
    assert second_result.get_outputs("3")[0].to_bytes()[:4] == b"\x89PNG"


def test_invalid_graph_is_refused(comfy: Comfy) -> None:
    graph = picture(next(_colors))
    del graph["2"]["inputs"]["images"]
    with pytest.raises(InvalidWorkflow) as exc_info:
        comfy.submit(comfy.workflows.from_json(graph))
    assert exc_info.value.details is not None
    [error] = exc_info.value.details["node_errors"]["2"]
    assert (error["field"], error["reason"]) == ("images", "required_input_missing")
    assert exc_info.value.details["code"] == "invalid_graph"
    assert exc_info.value.request_id
    graph["1"]["class_type"] = "NoSuchNode"
    with pytest.raises(InvalidWorkflow):
        comfy.submit(comfy.workflows.from_json(graph))


def test_raising_node_fails_the_render(comfy: Comfy) -> None:
    graph = picture(next(_colors))
    graph["3"] = {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    job = comfy.submit(comfy.workflows.from_json(graph))
    with pytest.raises(JobFailed):
        job.result()
    assert (job.error.code, job.error.node_id) == ("render_failed", "3")


def test_wrong_key_is_an_authentication_error(comfy: Comfy, address: str) -> None:
    with Comfy(api_key="moyin_00000000_wrong") as wrong_key_client, pytest.raises(Unauthorized):
        wrong_key_client.submit(wrong_key_client.workflows.from_json(picture(1)))


async def test_async_client_renders(async_comfy: AsyncComfy) -> None:
    asset = async_comfy.assets.from_bytes(make_red_and_blue_png(), filename="a.png")
    job = await async_comfy.submit(async_comfy.workflows.from_json(make_inverting_graph(asset)))
    events = [event async for event in job.events()]
    assert events[-1] == StatusChange(status="succeeded")
    await job.result()
    [output] = job.get_outputs("3")
    assert (await output.to_bytes())[:4] == b"\x89PNG"
