"""Runs the shell examples for jobs and files, from several pages, against a real gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from aiohttp import web

from moyin.render.templates.catalog import SHIPPED_FOLDER, TemplateCatalog
from tests.examples import ROOT, read_example, run_shell_example
from tests.integration.gateway.fixtures import Farm, ScriptedService
from tests.integration.gateway.test_history import encode_png, upload_artifact
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.waiting import eventually

CHAT: dict[str, Any] = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}
HISTORY, QUICKSTART, TEMPLATES = "docs/history.md", "docs/quickstart.md", "docs/templates.md"


async def run_example(farm: Farm, page: str, name: str, **kwargs: Any) -> str:
    return await asyncio.to_thread(
        run_shell_example, page, name, url=farm.url, KEY=farm.key, **kwargs
    )


@pytest.fixture
async def farm_with_sdxl(
    tmp_path: Path, temporal_server: TemporalServer, valkey_server: ValkeyServer
) -> AsyncIterator[Farm]:
    farm = Farm(tmp_path, temporal_server, valkey_server, ScriptedService())
    farm.templates = TemplateCatalog((SHIPPED_FOLDER, ROOT / "examples" / "templates"))
    await farm.open()
    yield farm
    await farm.close()


async def test_jobs_are_listed_by_filters(working_farm: Farm) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    working_farm.services.answers["/v1/chat/completions"] = refuse
    aurora_job_id, other_job_id = [
        (await working_farm.submit_job(CHAT | {"metadata": {"project": project}}))["id"]
        for project in ("aurora", "dawn")
    ]
    for job_id in (aurora_job_id, other_job_id):
        await working_farm.wait_for_status(job_id, "failed")
    page = json.loads(await run_example(working_farm, HISTORY, "list"))
    assert [job["id"] for job in page["jobs"]] == [aurora_job_id]


async def test_jobs_are_deleted_by_a_filter_after_a_dry_run(working_farm: Farm) -> None:
    job = await working_farm.submit_job(CHAT | {"metadata": {"project": "aurora"}})
    await working_farm.wait_for_status(job["id"], "succeeded")
    page, name, timestamp = HISTORY, "delete", "2026-01-01T00:00:00Z"
    earlier_replacement = {timestamp: "2001-01-01T00:00:00Z"}
    assert (
        json.loads(await run_example(working_farm, page, name, replaced=earlier_replacement))[
            "matched"
        ]
        == 0
    )
    later_replacement = {timestamp: "2099-01-01T00:00:00Z"}
    assert (
        json.loads(await run_example(working_farm, page, name, replaced=later_replacement))[
            "matched"
        ]
        == 1
    )
    assert (await working_farm.fetch_job(job["id"]))["status"] == "succeeded"
    real_run_replacement = later_replacement | {'"dry_run": true': '"dry_run": false'}
    assert (
        json.loads(await run_example(working_farm, page, name, replaced=real_run_replacement))[
            "matched"
        ]
        == 1
    )

    async def is_gone() -> bool:
        async with working_farm.client.get(f"/jobs/{job['id']}") as response:
            return response.status == 404

    await eventually(is_gone)


async def test_signed_link_opens_a_file_without_a_key(farm: Farm) -> None:
    content = encode_png()
    artifact_id = await upload_artifact(farm.client, content)
    link = json.loads(await run_example(farm, HISTORY, "link", ID=artifact_id))
    async with farm.client.get(link["url"], headers={"authorization": ""}) as response:
        assert (response.status, await response.read()) == (200, content)


async def test_an_archive_has_the_chosen_files(farm: Farm) -> None:
    contents = [encode_png(), b"a note"]
    artifact_ids = [await upload_artifact(farm.client, content) for content in contents]
    link = json.loads(
        await run_example(farm, HISTORY, "archive", ID=artifact_ids[0], OTHER=artifact_ids[1])
    )
    async with farm.client.get(link["url"], headers={"authorization": ""}) as response:
        with ZipFile(BytesIO(await response.read())) as archive:
            assert [archive.read(name) for name in archive.namelist()] == contents


async def test_a_template_is_listed_and_submitted(farm: Farm) -> None:
    decoder, output = json.JSONDecoder(), await run_example(farm, TEMPLATES, "submit")
    listed_templates, end_index = decoder.raw_decode(output)
    assert "swatch" in {template["name"] for template in listed_templates["templates"]}
    job = json.loads(output[end_index:])
    [step] = (await farm.fetch_job(job["id"]))["submitted"]["steps"]
    assert (step["kind"], step["template"]) == ("render", "swatch")
    assert step["inputs"] == {"prompt": "sea", "seed": 2003199}


async def test_a_batch_has_a_render_for_each_combination(farm_with_sdxl: Farm) -> None:
    body = json.loads(read_example(TEMPLATES, "batch", "json"))
    job = await farm_with_sdxl.submit_job(body)
    assert job["steps"] == 6


async def test_a_graph_is_rendered_and_followed(farm: Farm) -> None:
    render_task = asyncio.create_task(run_example(farm, "README.md", "render"))

    async def list_jobs() -> Any:
        async with farm.client.get("/jobs") as response:
            return (await response.json())["jobs"]

    [job] = await eventually(list_jobs)
    dawn_graph = json.loads((ROOT / "examples" / "dawn.json").read_text())
    async with farm.client.get(f"/jobs/{job['id']}/graph") as response:
        assert await response.json() == dawn_graph
    await farm.start_worker()
    async with farm.client.post(f"/jobs/{job['id']}/cancel") as response:
        assert response.status == 202
    assert "event: cancelled" in await render_task


async def test_a_pipeline_calls_its_webhook(working_farm: Farm) -> None:
    replacements = {"https://example.com/done": f"{working_farm.services_url}/done"}
    job = json.loads(await run_example(working_farm, QUICKSTART, "pipeline", replaced=replacements))
    finished_job = await working_farm.wait_for_status(job["id"])
    first_text, second_text = (output["text"] for output in finished_job["outputs"])
    assert second_text == f"re: A poem on {first_text}"
    await eventually(lambda: working_farm.services.count_calls("/done") == 1)
