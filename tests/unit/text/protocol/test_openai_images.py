from __future__ import annotations

import json
from typing import Any

import pytest

from moyin.errors import InvalidRequest, RequestError
from moyin.http.multipart import FormFile, MultipartForm
from moyin.text.protocol.openai.images import (
    ImageEdit,
    assign_pictures,
    images_request_to_job,
    parse_image_edit,
    parse_images_request,
    rename_job_field,
)
from tests.unit.http.test_multipart import MemoryFile

TAKES: dict[str, dict[str, Any]] = {
    "prompt": {"type": "string"},
    "seed": {"type": "integer", "minimum": 10, "maximum": 20},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "quality": {"type": "string"},
}


def make_job(
    template_inputs: dict[str, dict[str, Any]] = TAKES,
    idempotency_key: str | None = None,
    **members: Any,
) -> dict[str, Any]:
    body = parse_images_request(json.dumps({"prompt": "a cat", "model": "t", **members}).encode())
    return images_request_to_job(
        body, "swatch", template_inputs, cache=True, idempotency_key=idempotency_key
    )


def drop_inputs(*names: str) -> dict[str, dict[str, Any]]:
    return {name: schema for name, schema in TAKES.items() if name not in names}


def test_random_seed_is_within_the_templates_bounds() -> None:
    seen_seeds = set()
    for _ in range(200):
        [seed] = make_job()["batch"]["seeds"]
        seen_seeds.add(seed)
    assert seen_seeds == set(range(10, 21))
    seeds = make_job(n=4)["batch"]["seeds"]
    assert len(seeds) == 4
    assert min(seeds) >= 10
    assert max(seeds) <= 20


def test_same_idempotency_key_gives_the_same_seeds() -> None:
    assert make_job(idempotency_key="k", n=2) == make_job(idempotency_key="k", n=2)


def test_openai_members_become_template_inputs() -> None:
    image_job = make_job(size="640x480", quality="high", user="u1", inputs={"seed": 12})
    assert image_job["inputs"] == {
        "prompt": "a cat", "seed": 12, "width": 640, "height": 480, "quality": "high",
    }  # fmt: skip
    assert (image_job["template"], image_job["metadata"], "batch" in image_job) == (
        "swatch",
        {"user": "u1"},
        False,
    )
    assert make_job(n=2, inputs={"seed": 12})["batch"] == {"seeds": [12, 13]}
    assert "width" not in make_job(size="auto")["inputs"]
    assert "batch" not in make_job(drop_inputs("seed"))


def test_default_options_need_no_input() -> None:
    ordinary_members: dict[str, Any] = {
        "quality": "standard",
        "background": "auto",
        "stream": False,
        "style": None,
    }
    assert make_job(drop_inputs("quality"), **ordinary_members)["inputs"].keys() == {"prompt"}


@pytest.mark.parametrize(
    ("members", "template_inputs", "field"),
    [
        ({"prompt": ""}, TAKES, "prompt"),
        ({"prompt": 5}, TAKES, "prompt"),
        ({"model": None}, TAKES, "model"),
        ({}, drop_inputs("prompt"), "model"),
        ({"n": 0}, TAKES, "n"),
        ({"n": 11}, TAKES, "n"),
        ({"n": 2}, drop_inputs("seed"), "n"),
        ({"size": "big"}, TAKES, "size"),
        ({"size": "64x64"}, drop_inputs("width"), "size"),
        ({"response_format": "png"}, TAKES, "response_format"),
        ({"quality": "hd"}, drop_inputs("quality"), "quality"),
        ({"style": "vivid"}, TAKES, "style"),
        ({"stream": True}, TAKES, "stream"),
        ({"background": "transparent"}, TAKES, "background"),
        ({"output_format": "webp"}, TAKES, "output_format"),
        ({"nonsense": 1}, TAKES, "nonsense"),
    ],
)
def test_unsupported_member_is_refused_by_name(
    members: dict[str, Any], template_inputs: dict[str, dict[str, Any]], field: str
) -> None:
    with pytest.raises(RequestError) as exc_info:
        make_job(template_inputs, **members)
    assert exc_info.value.field == field


def test_job_errors_use_the_clients_field_names() -> None:
    error = rename_job_field(
        InvalidRequest("inputs.width must be at most 4096", field="inputs.width")
    )
    assert (error.field, error.message) == ("size", "size must be at most 4096")
    assert rename_job_field(InvalidRequest("no", field="pool")).field == "pool"


def make_file(field: str) -> FormFile:
    content = MemoryFile(b"x")
    return FormFile(field=field, name="a.png", content_type="", size=1, content=content)


def parse_edit(*files: FormFile, **fields: str) -> ImageEdit:
    fields = {"prompt": "a cat", "model": "t", **fields}
    return parse_image_edit(MultipartForm(fields=list(fields.items()), files=files))


PICTURE = {"type": "string", "format": "image"}


def test_pictures_of_an_edit_go_to_the_templates_inputs() -> None:
    first_picture, second_picture, mask = (
        make_file("image[]"),
        make_file("image[]"),
        make_file("mask"),
    )
    image_edit = parse_edit(
        first_picture, second_picture, mask, n="2", stream="false", inputs='{"seed": 12}'
    )
    assert (image_edit.body.n, image_edit.body.stream, image_edit.body.inputs) == (
        2,
        False,
        {"seed": 12},
    )
    template_inputs = {**TAKES, "image": PICTURE, "image_2": PICTURE, "mask": PICTURE}
    assert assign_pictures(image_edit, "t", template_inputs) == {
        "image": first_picture,
        "image_2": second_picture,
        "mask": mask,
    }


@pytest.mark.parametrize(
    ("template_inputs", "field"),
    [
        ({"image": {"type": "string"}, "image_2": PICTURE, "mask": PICTURE}, "model"),
        ({"image": PICTURE, "mask": PICTURE}, "image"),
        ({"image": PICTURE, "image_2": PICTURE}, "mask"),
    ],
)
def test_pictures_without_an_input_are_refused(
    template_inputs: dict[str, dict[str, Any]], field: str
) -> None:
    with pytest.raises(RequestError) as exc_info:
        assign_pictures(
            parse_edit(make_file("image"), make_file("image"), make_file("mask")),
            "t",
            template_inputs,
        )
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("files", "fields", "field"),
    [
        ([], {}, "image"),
        (["image", "mask", "mask"], {}, "mask"),
        (["image"], {"n": "many"}, "n"),
        (["image"], {"input_fidelity": "high"}, "input_fidelity"),
    ],
)
def test_invalid_edits_are_refused(files: list[str], fields: dict[str, str], field: str) -> None:
    with pytest.raises(RequestError) as exc_info:
        parse_edit(*map(make_file, files), **fields)
    assert exc_info.value.field == field
