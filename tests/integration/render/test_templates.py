"""Tests templates, batches and OpenAI's image routes on a whole farm with a real ComfyUI."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.acceptance.openai_models import check_response
from tests.chaos.graphs import picture, sleepy
from tests.examples import read_example
from tests.stack import RecordMeasurement, RunningStack
from tests.waiting import eventually_blocking

PNG = b"\x89PNG\r\n\x1a\n"
FINAL = ("succeeded", "failed", "cancelled")
Job = dict[str, Any]
# Other colours are other graphs.
_colors = itertools.count(0x400000)


@pytest.fixture(scope="module")
def http(gateway: RunningStack) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
        # From the first picture on, graphs are validated when they are submitted.
        submit_and_wait(client, {"kind": "render", "workflow": picture(next(_colors))})
        yield client


@pytest.fixture
def sdk(gateway: RunningStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=gateway.api_key,
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [check_response]}),
    ) as client:
        yield client


def post_job(http: httpx.Client, body: Mapping[str, Any]) -> httpx.Response:
    return http.post("/jobs", json=body)


def wait_until(http: httpx.Client, job_id: str, condition: Callable[[Job], bool]) -> Job:
    def fetch_if_met() -> Job | None:
        job: Job = http.get(f"/jobs/{job_id}").json()
        return job if condition(job) else None

    result: Job = eventually_blocking(fetch_if_met, 240)
    return result


def submit_and_wait(http: httpx.Client, body: Mapping[str, Any]) -> Job:
    response = post_job(http, body)
    assert response.status_code == 202, response.text
    job = wait_until(http, response.json()["id"], lambda job: job["status"] in FINAL)
    assert (job["status"], job["error"]) == ("succeeded", None)
    return job


def build_swatch_job(**inputs: Any) -> Job:
    inputs = {"prompt": "x", "seed": next(_colors), "width": 16, "height": 8, **inputs}
    return {"kind": "render", "template": "swatch", "inputs": inputs}


def read_size(picture: bytes) -> tuple[int, int]:
    assert picture[:8] == PNG
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


def read_sizes(http: httpx.Client, job: Job) -> list[tuple[int, int]]:
    return [read_size(http.get(artifact["url"]).content) for artifact in job["artifacts"]]


def test_templates_are_listed_with_the_schema_of_their_inputs(http: httpx.Client) -> None:
    response = http.get("/templates")
    templates_by_name = {template["name"]: template for template in response.json()["templates"]}
    assert templates_by_name.keys() >= {"swatch", "resize"}
    assert templates_by_name["swatch"]["inputs"]["required"] == ["prompt"]
    assert "graph" not in templates_by_name["swatch"]
    for path in ("/templates", "/templates/swatch"):
        etag = http.get(path).headers["etag"]
        cached_response = http.get(path, headers={"if-none-match": etag})
        assert (cached_response.status_code, cached_response.content) == (304, b"")
    unknown_response = http.get("/templates/none")
    assert (unknown_response.status_code, unknown_response.json()["code"]) == (
        404,
        "template_not_found",
    )


@pytest.mark.parametrize(
    ("body", "field", "expected_text"),
    [
        (build_swatch_job(width=4), "inputs.width", "at least 8"),
        (build_swatch_job(width="16"), "inputs.width", "an integer"),
        (build_swatch_job(prompt=["colour", 0]), "inputs.prompt", "a string"),
        (build_swatch_job(colour=1), "inputs.colour", "prompt, seed, width, height"),
        ({"kind": "render", "template": "swatch"}, "inputs.prompt", "missing"),
        ({"kind": "render", "template": "swutch"}, "template", "swatch"),
        ({**build_swatch_job(), "batch": {"seeds": 257}}, "batch.seeds", "1 to 256"),
        ({**build_swatch_job(), "batch": {"sweep": {"inputs.width": [8, 4]}}},
         "batch.sweep.inputs.width", "at least 8"),
    ],
)  # fmt: skip
def test_errors_of_bad_inputs_name_valid_ones(
    http: httpx.Client, body: Job, field: str, expected_text: str
) -> None:
    response = post_job(http, body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (400, "invalid_request")
    assert problem["field"] == field
    assert expected_text in problem["detail"]


def test_a_template_renders_and_its_inputs_are_restored(http: httpx.Client) -> None:
    prompt = 'a ${steps.0.text} $${x} ["colour", 0]'
    job = submit_and_wait(http, build_swatch_job(prompt=prompt, width=24, height=16))
    assert read_sizes(http, job) == [(24, 16)], "the preview of the caption is no result"
    assert job["outputs"][0]["body"]["outputs"]["caption"]["text"] == [prompt]


def test_template_input_accepts_only_own_pictures(
    http: httpx.Client,
) -> None:
    text_file_id = http.post("/artifacts?name=a.txt", content=b"text").json()["id"]
    for image, code in (("art_" + "0" * 32, "input_not_found"), (text_file_id, "invalid_request")):
        inputs = {"image": image, "width": 4, "height": 4}
        response = post_job(http, {"kind": "render", "template": "resize", "inputs": inputs})
        assert response.status_code == 400, response.text
        problem = response.json()
        assert (problem["code"], problem["field"]) == (code, "inputs.image")
    resize_step = {
        "kind": "render",
        "template": "resize",
        "inputs": {"image": {"from": "steps.0.artifacts.0"}, "width": 4, "height": 12},
    }
    job = submit_and_wait(http, {"kind": "pipeline", "steps": [build_swatch_job(), resize_step]})
    assert read_sizes(http, job) == [(16, 8), (4, 12)]


def test_a_sweep_is_one_job_with_children_in_order(http: httpx.Client) -> None:
    batch = {"sweep": {"inputs.width": [8, 9], "inputs.height": [10, 11]}}
    job = submit_and_wait(http, {**build_swatch_job(), "batch": batch})
    assert read_sizes(http, job) == [(8, 10), (8, 11), (9, 10), (9, 11)]
    assert (job["steps"], job["progress"]["value"], job["progress"]["max"]) == (4, 4, 4)
    children = [(c["index"], c["status"], c["inputs"], c["progress"]) for c in job["children"]]
    assert children[1] == (1, "succeeded", {"width": 8, "height": 11}, 1)
    assert [c["artifacts"][0]["id"] for c in job["children"]] == [a["id"] for a in job["artifacts"]]
    listed_jobs = http.get("/jobs?limit=200").json()["jobs"]
    assert [item["id"] for item in listed_jobs].count(job["id"]) == 1


def test_a_retried_batch_continues_after_its_finished_children(
    gateway: RunningStack, http: httpx.Client
) -> None:
    sweep = {"workflow.3.inputs.seconds": [4.0, 4.1, 4.2]}
    body = {
        "kind": "render",
        "workflow": sleepy(0, next(_colors)),
        "batch": {"sweep": sweep},
    }
    response = post_job(http, body)
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]

    # One ComfyUI, and nobody promises in which order it takes them.
    running_job = wait_until(http, job_id, lambda job: job["progress"]["value"] >= 1)
    assert running_job["progress"]["value"] < 3
    assert http.post(f"/jobs/{job_id}/cancel").status_code == 202
    job = wait_until(http, job_id, lambda job: job["status"] in FINAL)
    statuses = [child["status"] for child in job["children"]]
    assert job["status"] == "cancelled"
    assert set(statuses) == {"succeeded", "cancelled"}
    assert len(job["artifacts"]) == statuses.count("succeeded")

    assert http.post(f"/jobs/{job_id}/retry").status_code == 202
    job = wait_until(http, job_id, lambda job: job["status"] in FINAL)
    assert (job["status"], job["attempts"], len(job["artifacts"])) == ("succeeded", 2, 3)
    cancelled_steps = [index for index, status in enumerate(statuses) if status == "cancelled"]
    assert sorted(gateway.activities(job_id, "render_step")) == cancelled_steps


def test_a_failed_child_does_not_fail_the_others(http: httpx.Client) -> None:
    graph = picture(next(_colors))
    graph["3"] = {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}}
    # The node that raises does so for every child; only those whose picture needs it fail.
    graph["2"]["inputs"]["images"] = ["3", 0]
    body = {"kind": "render", "workflow": graph, "batch": {"sweep": {
        "workflow.1.inputs.color": [next(_colors), next(_colors)]}}}  # fmt: skip
    response = post_job(http, body)
    job = wait_until(http, response.json()["id"], lambda job: job["status"] in FINAL)
    assert (job["status"], job["error"]["code"]) == ("failed", "render_failed")
    assert job["error"]["message"].startswith("2 of 2 children failed")
    assert [child["error"]["code"] for child in job["children"]] == ["render_failed"] * 2


def test_openai_s_sdk_gets_pictures(
    gateway: RunningStack, sdk: openai.OpenAI, record_measurement: RecordMeasurement
) -> None:
    started_at = time.monotonic()
    images_response = sdk.images.generate(
        model="swatch", prompt="x", n=2, size="16x24", response_format="b64_json"
    )
    record_measurement(
        f"two pictures through images.generate: {time.monotonic() - started_at:.2f} s"
    )
    assert images_response.data is not None
    pictures = [base64.b64decode(image.b64_json or "") for image in images_response.data]
    assert [read_size(image) for image in pictures] == [(16, 24)] * 2
    assert pictures[0] != pictures[1]

    [image] = sdk.images.generate(model="swatch", prompt="x", size="8x8", user="u1").data or []
    assert image.url is not None
    assert image.url.startswith(f"{gateway.url}/artifacts/signed/")
    # No key: the address is enough for this one file, and any other is not.
    response = httpx.get(image.url)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert read_size(response.content) == (8, 8)
    link_base, _, name = image.url.rpartition("/")
    altered_link_response = httpx.get(f"{link_base[:-4]}AAAA/{name}")
    assert (altered_link_response.status_code, altered_link_response.json()["code"]) == (
        401,
        "invalid_token",
    )


@pytest.mark.parametrize(
    ("members", "error_type", "param"),
    [
        ({"model": "gpt-image-9"}, openai.NotFoundError, "model"),
        ({"model": "resize"}, openai.BadRequestError, "model"),
        ({"size": "4x4"}, openai.BadRequestError, "size"),
        ({"size": "large"}, openai.BadRequestError, "size"),
        ({"n": 11}, openai.BadRequestError, "n"),
        ({"style": "vivid"}, openai.BadRequestError, "style"),
        ({"extra_body": {"inputs": {"colour": 1}}}, openai.BadRequestError, "inputs.colour"),
    ],
)
def test_openai_sdk_gets_errors_in_its_own_format(
    http: httpx.Client,
    sdk: openai.OpenAI,
    members: dict[str, Any],
    error_type: type[openai.APIStatusError],
    param: str,
) -> None:
    with pytest.raises(error_type) as exc_info:
        sdk.images.generate(**{"model": "swatch", "prompt": "x", **members})
    assert exc_info.value.param == param


def test_a_client_that_does_not_wait_gets_the_job(http: httpx.Client, sdk: openai.OpenAI) -> None:
    body = {"model": "swatch", "prompt": "x", "user": "soon", "size": "8x8"}
    headers = {"prefer": "respond-async", "idempotency-key": f"soon-{next(_colors)}"}
    responses = [http.post("/v1/images/generations", json=body, headers=headers) for _ in range(2)]
    assert [response.status_code for response in responses] == [202, 202], responses[0].text
    assert responses[0].headers["location"] == responses[1].headers["location"]
    job_id = responses[0].json()["id"]
    job = wait_until(http, job_id, lambda job: job["status"] in FINAL)
    assert (job["metadata"], len(job["artifacts"])) == ({"user": "soon"}, 1)

    # Too long for the client: told once, and not rendered again by the SDK's retries.
    with pytest.raises(openai.InternalServerError) as exc_info:
        sdk.images.generate(
            model="swatch", prompt="x", user="late", extra_headers={"x-moyin-timeout": "0.001"}
        )
    assert (exc_info.value.status_code, exc_info.value.code) == (504, "backend_timeout")
    late_jobs = [
        job for job in http.get("/jobs").json()["jobs"] if job["metadata"] == {"user": "late"}
    ]
    assert [job["id"] for job in late_jobs] == [exc_info.value.response.headers["x-moyin-job"]]
    assert (
        wait_until(http, late_jobs[0]["id"], lambda job: job["status"] in FINAL)["status"]
        == "succeeded"
    )


def test_a_disconnect_cancels_the_calls_of_the_client(
    gateway: RunningStack, http: httpx.Client
) -> None:
    # The only ComfyUI is busy, so that nothing below can end by itself.
    busy_job = post_job(http, {"kind": "render", "workflow": sleepy(600, next(_colors))}).json()[
        "id"
    ]
    wait_until(http, busy_job, lambda job: job["status"] == "running")
    job_ids = {}
    key_headers = {"idempotency-key": f"back-{next(_colors)}"}
    for user, extra_headers in {"back": key_headers, "gone": {}}.items():
        # It sends, and reads no answer.
        client = HTTPConnection("127.0.0.1", gateway.ports.door, timeout=60)
        body = {"model": "swatch", "prompt": "x", "user": user, "size": "8x8"}
        headers = {"authorization": f"Bearer {gateway.api_key}", "content-type": "application/json"}
        client.request(
            "POST", "/v1/images/generations", json.dumps(body), {**headers, **extra_headers}
        )
        job_ids[user] = find_job(http, user)
        client.close()
    wait_until(http, job_ids["gone"], lambda job: job["status"] == "cancelled")
    # Who gave a key comes back for the same job.
    assert http.get(f"/jobs/{job_ids['back']}").json()["status"] not in FINAL
    for job_id in (job_ids["back"], busy_job):
        assert http.post(f"/jobs/{job_id}/cancel").status_code == 202
        wait_until(http, job_id, lambda job: job["status"] == "cancelled")


def find_job(http: httpx.Client, user: str) -> str:
    """Wait for a job with ``user`` in its metadata, and return the job's id."""

    def list_ids() -> list[str]:
        jobs: list[Job] = http.get("/jobs").json()["jobs"]
        return [job["id"] for job in jobs if job["metadata"] == {"user": user}]

    [job_id] = eventually_blocking(list_ids, 180)
    return str(job_id)


def test_an_equal_graph_is_rendered_once_for_its_tenant(
    gateway: RunningStack, http: httpx.Client, record_measurement: RecordMeasurement
) -> None:
    body = build_swatch_job(prompt="once")
    first_job = submit_and_wait(http, body)
    started_at = time.monotonic()
    second_job = submit_and_wait(http, body)
    record_measurement(
        f"a render that was kept: {time.monotonic() - started_at:.2f} s from submit to end"
    )
    assert (first_job["cached"], second_job["cached"], second_job["cost_usd"]) == (False, True, 0)
    assert second_job["outputs"][0]["backend"] == "cache"
    # Its own artifacts, of the same bytes; the texts that the graph put out as well.
    assert {a["id"] for a in first_job["artifacts"]}.isdisjoint(
        a["id"] for a in second_job["artifacts"]
    )
    pictures = [http.get(job["artifacts"][0]["url"]).content for job in (first_job, second_job)]
    assert pictures[0] == pictures[1]
    assert second_job["outputs"][0]["body"]["outputs"]["caption"]["text"] == ["once"]
    events = http.get(f"/jobs/{second_job['id']}/events").text
    assert [kind for kind in ("running", "step", "succeeded") if f"event: {kind}" in events] == [
        "running", "step", "succeeded",
    ]  # fmt: skip
    # All of a batch that was not rendered before is.
    seed = body["inputs"]["seed"]
    batch = submit_and_wait(http, {**body, "batch": {"seeds": [seed, next(_colors)]}})
    assert [child["cached"] for child in batch["children"]] == [True, False]
    assert batch["cached"] is False

    assert submit_and_wait(http, {**body, "cache": False})["cached"] is False
    key = next(w for w in gateway.run("keys", "create", "rival").stdout.split() if "moyin_" in w)
    with httpx.Client(base_url=gateway.url, headers={"x-api-key": key}, timeout=60) as other_tenant:
        assert submit_and_wait(other_tenant, body)["cached"] is False
        assert submit_and_wait(other_tenant, body)["cached"] is True


def test_a_node_with_is_changed_is_rendered_every_time(http: httpx.Client) -> None:
    graph = picture(next(_colors))
    graph["3"] = {
        "class_type": "TestIsChangedWithConstants",
        "inputs": {"image": ["1", 0], "value": 0.5},
    }
    graph["2"]["inputs"]["images"] = ["3", 0]
    jobs = [submit_and_wait(http, {"kind": "render", "workflow": graph}) for _ in range(2)]
    assert [job["cached"] for job in jobs] == [False, False]


def test_failed_render_is_not_cached(http: httpx.Client) -> None:
    graph = picture(next(_colors))
    graph["3"] = {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    for _ in range(2):
        response = post_job(http, {"kind": "render", "workflow": graph})
        job = wait_until(http, response.json()["id"], lambda job: job["status"] in FINAL)
        assert (job["status"], job["cached"]) == ("failed", False)


def test_the_command_line_renders_a_template(gateway: RunningStack, tmp_path: Path) -> None:
    output_words = gateway.run(
        "render", "--template", "swatch", "-i", "prompt=sea", "-i", "width=16", "-i", "height=8",
        "-o", str(tmp_path),
    ).stdout.split()  # fmt: skip
    assert read_size(Path(output_words[-1]).read_bytes()) == (16, 8)
    refused_process = gateway.run("render", "-t", "swatch", "-i", "width=4", check=False)
    assert refused_process.stderr.startswith("error: invalid_request: inputs.")


def test_the_doctor_names_a_template_that_is_wrong(gateway: RunningStack) -> None:
    folder = gateway.data / "templates"
    folder.mkdir()
    try:
        (folder / "bad.json").write_text('{"name": "bad", "title": "Bad", "graph": {"1": 5}}')
        process = gateway.run("doctor", check=False)
        assert process.returncode != 0
        assert "bad.json: graph.1: must be an object" in " ".join(process.stdout.split())
    finally:
        shutil.rmtree(folder)


EDIT_TEMPLATE: dict[str, Any] = {
    "name": "shrink",
    "title": "Shrink with a caption",
    "inputs": {
        "prompt": {"type": "string"},
        "image": {"type": "string", "format": "image"},
        "width": {"type": "integer", "default": 4},
        "height": {"type": "integer", "default": 4},
    },
    "outputs": ["save"],
    "graph": {
        "caption": {"class_type": "PreviewAny", "inputs": {"source": "${inputs.prompt}"}},
        "load": {"class_type": "LoadImage", "inputs": {"image": "${inputs.image}"}},
        "scale": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["load", 0], "upscale_method": "area", "crop": "disabled",
                "width": "${inputs.width}", "height": "${inputs.height}",
            },
        },
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["scale", 0], "filename_prefix": "shrunk"},
        },
    },
}  # fmt: skip


def test_openai_s_sdk_edits_pictures_by_a_template(
    gateway: RunningStack, http: httpx.Client, sdk: openai.OpenAI
) -> None:
    template_path = gateway.data / "templates" / "shrink.json"
    template_path.parent.mkdir()
    template_path.write_text(json.dumps(EDIT_TEMPLATE))
    try:
        eventually_blocking(lambda: http.get("/templates/shrink").status_code == 200, 180)
        [made_picture] = (
            sdk.images.generate(
                model="swatch", prompt="x", size="32x32", response_format="b64_json"
            ).data
            or []
        )
        picture = ("a.png", base64.b64decode(made_picture.b64_json or ""), "image/png")
        response = sdk.images.with_raw_response.edit(
            model="shrink", prompt="Small.", image=picture, size="8x6", response_format="b64_json",
            extra_headers={"idempotency-key": f"edit-{next(_colors)}"},
        )  # fmt: skip
        [edited_picture] = response.parse().data or []
        assert read_size(base64.b64decode(edited_picture.b64_json or "")) == (8, 6)
        assert http.get(f"/jobs/{response.headers['x-moyin-job']}").json()["status"] == "succeeded"
        with pytest.raises(openai.BadRequestError) as mask_error:
            sdk.images.edit(model="shrink", prompt="x", image=picture, mask=picture)
        assert mask_error.value.param == "mask"
        with pytest.raises(openai.BadRequestError) as model_error:
            sdk.images.edit(model="swatch", prompt="x", image=picture)
        assert model_error.value.param == "model"
        with pytest.raises(openai.NotFoundError) as exc_info:
            sdk.images.edit(model="gpt-image-9", prompt="x", image=picture)
        assert exc_info.value.code == "operation_not_configured"
    finally:
        shutil.rmtree(template_path.parent)


def test_the_examples_of_the_page_make_and_edit_pictures(
    gateway: RunningStack, http: httpx.Client, sdk: openai.OpenAI, tmp_path: Path
) -> None:
    variables: dict[str, Any] = {"client": sdk}
    exec(read_example("docs/templates.md", "images", "python"), variables)
    pictures = [httpx.get(image.url).content for image in variables["made"].data]
    assert [read_size(picture) for picture in pictures] == [(512, 512)] * 2

    # Scales the picture instead of painting in it, which needs a model.
    seed_node = {"class_type": "PreviewAny", "inputs": {"source": "${inputs.seed}"}}
    inpaint_template = EDIT_TEMPLATE | {
        "name": "inpaint",
        "inputs": EDIT_TEMPLATE["inputs"] | {"seed": {"type": "integer", "default": 0}},
        "graph": EDIT_TEMPLATE["graph"] | {"seed": seed_node},
    }
    house_path = tmp_path / "house.png"
    house_path.write_bytes(pictures[0])
    template_path = gateway.data / "templates" / "inpaint.json"
    template_path.parent.mkdir()
    template_path.write_text(json.dumps(inpaint_template))
    try:
        eventually_blocking(lambda: http.get("/templates/inpaint").status_code == 200, 180)
        example = read_example("docs/templates.md", "edits", "python")
        assert '"house.png"' in example
        exec(example.replace('"house.png"', repr(str(house_path))), variables)
        edited_pictures = [httpx.get(image.url).content for image in variables["made"].data]
        assert [read_size(picture) for picture in edited_pictures] == [(4, 4)] * 2
    finally:
        shutil.rmtree(template_path.parent)
