"""Translates requests of ``POST /v1/images/generations`` to render jobs.

Source: OpenAI's API reference as typed in ``openai.types.image_generate_params``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, JsonValue
from pydantic_core import to_json

from moyin.errors import InvalidRequest, MoyinError, UnsupportedFeature
from moyin.http.multipart import FormFile, MultipartForm
from moyin.http.validation import WireModel, parse_json, parse_object, validate

_SIZE_PATTERN = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MAX_IMAGES = 10
# Members that set the template's input of the same name. The listed values need no such input,
# because they mean the default.
_OPTIONAL_MEMBERS: Mapping[str, tuple[Any, ...]] = {
    "quality": (None, "auto", "standard"),
    "style": (None,),
    "background": (None, "auto"),
    "moderation": (None, "auto", "low"),
    "output_format": (None, "png"),
    "output_compression": (None, 100),
    "stream": (None, False),
    "partial_images": (None, 0),
}
# The member of the image request that each field of the job comes from.
_MEMBERS_BY_JOB_FIELD = {
    "template": "model",
    "inputs.prompt": "prompt",
    "inputs.image": "image",
    "inputs.mask": "mask",
    "inputs.width": "size",
    "inputs.height": "size",
    "batch.seeds": "n",
    **{f"inputs.{name}": name for name in _OPTIONAL_MEMBERS},
}


# Form fields that are not text.
_NUMBERS = frozenset({"n", "output_compression", "partial_images"})
_FLAGS = frozenset({"stream"})


class ImagesBody(WireModel):
    """The body of ``POST /v1/images/generations``.

    Attributes:
        model: the name of a render template that has an input ``prompt``.
        n: the number of pictures, each with its own value of the template's input ``seed``.
        size: the template's inputs ``width`` and ``height``, such as ``1024x1024``.
        inputs: values for the template's other inputs.
    """

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str = Field(min_length=1, max_length=64)
    n: int | None = Field(None, ge=1, le=_MAX_IMAGES)
    size: str | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: str | None = Field(None, max_length=1024)
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    stream: bool | None = None
    partial_images: int | None = None
    inputs: dict[str, JsonValue] = Field(default_factory=dict)


def parse_images_request(body: bytes) -> ImagesBody:
    """Parse and validate a request.

    Raises:
        InvalidJson, InvalidRequest: the body is invalid; the error names the field.
        UnsupportedFeature: a member is unknown.
    """
    images_body = validate(ImagesBody, parse_object(body))
    for name in images_body.extras:
        raise UnsupportedFeature(
            f"{name[:64]} is not supported for images: omit it", field=name[:64]
        )
    return images_body


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageEdit:
    """A request of ``POST /v1/images/edits`` that a template renders.

    Attributes:
        pictures: the files, in the order in which the client sent them.
        mask: the file of the mask; None if the client sent none.
    """

    body: ImagesBody
    pictures: tuple[FormFile, ...]
    mask: FormFile | None


def parse_image_edit(form: MultipartForm) -> ImageEdit:
    """Parse and validate the form of ``POST /v1/images/edits``.

    Raises:
        InvalidRequest: a field is invalid, or there is no picture.
        UnsupportedFeature: a field is unknown.
    """
    pictures, masks = form.find_files("image", "image[]"), form.find_files("mask")
    if not pictures:
        raise InvalidRequest(
            "image: must be a file, in a part of the form with a filename", field="image"
        )
    if len(masks) > 1:
        raise InvalidRequest("mask: send at most one file", field="mask")
    members = {name: _parse_field(name, value) for name, value in form.fields}
    body = parse_images_request(to_json(members))
    return ImageEdit(body=body, pictures=pictures, mask=masks[0] if masks else None)


def _parse_field(name: str, value: str) -> Any:
    """Convert a numeric, boolean or JSON form field; return any other field as text.

    A value that cannot be converted also stays text, which the later validation rejects.
    """
    if name in _NUMBERS and value.isascii() and value.isdecimal() and len(value) <= 9:
        return int(value)
    if name in _FLAGS and value in ("true", "false"):
        return value == "true"
    if name == "inputs":
        return parse_json(value.encode())
    return value


def assign_pictures(
    edit: ImageEdit, template: str, input_schemas: Mapping[str, Mapping[str, Any]]
) -> dict[str, FormFile]:
    """Return the file for each of the template's picture inputs, by the input's name.

    The first picture is for the input ``image``, the next for ``image_2``, ``image_3`` and so on.
    The mask is for the input ``mask``.

    Args:
        input_schemas: the JSON Schemas of the template's inputs, by name.

    Raises:
        InvalidRequest, UnsupportedFeature: the template has no input for a file.
    """
    files = {f"image_{n}" if n > 1 else "image": f for n, f in enumerate(edit.pictures, 1)}
    if edit.mask is not None:
        files["mask"] = edit.mask
    for name in files:
        if input_schemas.get(name, {}).get("format") == "image":
            continue
        if name == "image":
            raise InvalidRequest(
                f"model: the template {template!r} has no input 'image' for a picture: choose one "
                "that has",
                field="model",
            )
        field = "mask" if name == "mask" else "image"
        raise UnsupportedFeature(
            f"{field}: the template {template!r} has no input {name!r} for a picture: omit it",
            field=field,
        )
    return files


def images_request_to_job(
    body: ImagesBody,
    template: str,
    input_schemas: Mapping[str, Mapping[str, Any]],
    *,
    cache: bool,
    idempotency_key: str | None,
) -> dict[str, Any]:
    """Translate a request to a body of ``POST /jobs`` that renders a batch of ``n`` pictures.

    Args:
        template: the name of the render template.
        input_schemas: the JSON Schemas of the template's inputs, by name.
        cache: True if pictures may come from the cache of finished renders.
        idempotency_key: determines the seeds, so that a retry gets the same pictures. If None, the
            seeds are random.

    Raises:
        InvalidRequest, UnsupportedFeature: the template has no input for a member of the request.
    """
    if "prompt" not in input_schemas:
        raise InvalidRequest(
            f"model: the template {template!r} has no input 'prompt': choose one that has",
            field="model",
        )
    inputs: dict[str, Any] = {
        **body.inputs,
        "prompt": body.prompt,
        **_parse_size(body, template, input_schemas),
    }
    for name, default_values in _OPTIONAL_MEMBERS.items():
        member_value = getattr(body, name)
        if name in input_schemas and member_value is not None:
            inputs[name] = member_value
        elif member_value not in default_values:
            raise UnsupportedFeature(
                f"{name}: the template {template!r} has no such input: omit {name}", field=name
            )
    job = {"kind": "render", "template": template, "inputs": inputs, "cache": cache}
    picture_count = body.n or 1
    if "seed" in input_schemas and not (picture_count == 1 and "seed" in inputs):
        job["batch"] = {
            "seeds": _choose_seeds(picture_count, input_schemas["seed"], inputs, idempotency_key)
        }
    elif picture_count > 1:
        raise UnsupportedFeature(
            f"n must be 1, because the template {template!r} has no input 'seed' by which several "
            "pictures would differ",
            field="n",
        )
    if body.user is not None:
        job["metadata"] = {"user": body.user}
    return job


def rename_job_field(error: MoyinError) -> MoyinError:
    """Make ``error`` name the field of the image request instead of the field of its render job.

    The client knows only the image request, from which Moyin created the job.
    """
    if error.field is not None:
        field = _MEMBERS_BY_JOB_FIELD.get(error.field)
        if field is not None:
            error.message = error.message.replace(error.field, field, 1)
            error.field = field
    return error


def _parse_size(
    body: ImagesBody, template: str, input_schemas: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    if body.size in (None, "auto"):
        return {}
    match = _SIZE_PATTERN.fullmatch(body.size or "")
    if match is None:
        raise InvalidRequest("size must be like 1024x1024, or auto", field="size")
    if not {"width", "height"} <= input_schemas.keys():
        raise UnsupportedFeature(
            f"size: the template {template!r} has no inputs 'width' and 'height': omit size",
            field="size",
        )
    return {"width": int(match[1]), "height": int(match[2])}


def _choose_seeds(
    count: int,
    seed_schema: Mapping[str, Any],
    inputs: Mapping[str, Any],
    idempotency_key: str | None,
) -> list[int]:
    """Return ``count`` seeds, one per picture, counting up from a first seed.

    The first seed is ``inputs["seed"]`` if set, else a hash of ``idempotency_key`` if set, else random.

    Args:
        seed_schema: the JSON Schema of the template's input ``seed``, with its bounds.
        inputs: the client's inputs.
    """
    min_seed, max_seed = (
        int(seed_schema.get("minimum", 0)),
        int(seed_schema.get("maximum", 2**32 - 1)),
    )
    first_seed = inputs.get("seed")
    if isinstance(first_seed, int):
        return list(range(first_seed, first_seed + count))
    start_count = max(1, max_seed - min_seed + 2 - count)
    if idempotency_key is None:
        offset = secrets.randbelow(start_count)
    else:
        offset = int.from_bytes(hashlib.sha256(idempotency_key.encode()).digest()) % start_count
    return list(range(min_seed + offset, min_seed + offset + count))
