"""Translates ``POST /v1/images/generations`` to a job.

Source: OpenAI's API reference as typed in ``openai.types.image_generate_params``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue

from moyin.errors import InvalidRequest, MoyinError, UnsupportedFeature
from moyin.http.validation import WireModel, parse_object, validate

__all__ = ["ImagesBody", "parse", "rename_field", "to_job"]

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MAX_IMAGES = 10
# OpenAI's options, which a template may have as inputs, with the values that need no input.
_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "quality": (None, "auto", "standard"),
    "style": (None,),
    "background": (None, "auto"),
    "moderation": (None, "auto", "low"),
    "output_format": (None, "png"),
    "output_compression": (None, 100),
    "stream": (None, False),
    "partial_images": (None, 0),
}
# The client's field for each field of the job.
_FIELDS = {
    "template": "model",
    "inputs.prompt": "prompt",
    "inputs.width": "size",
    "inputs.height": "size",
    "batch.seeds": "n",
    **{f"inputs.{name}": name for name in _OPTIONS},
}


class ImagesBody(WireModel):
    """The body of a request for images.

    ``model`` is a template with an input ``prompt``. ``size`` sets its inputs ``width`` and
    ``height``, and ``n`` its ``seed``. ``inputs`` sets its other inputs.
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


def parse(body: bytes) -> ImagesBody:
    """Parse and validate a request.

    Raises:
        InvalidJson, InvalidRequest: the body is invalid; names the field.
        UnsupportedFeature: a member is unknown.
    """
    parsed = validate(ImagesBody, parse_object(body))
    for name in parsed.extras:
        raise UnsupportedFeature(f"{name[:64]} is not supported", field=name[:64])
    return parsed


def to_job(
    body: ImagesBody,
    template: str,
    accepted: Mapping[str, Mapping[str, Any]],
    *,
    cache: bool,
    idempotency_key: str | None,
) -> dict[str, Any]:
    """Translate a request to a body of ``POST /jobs``, with one child per picture.

    Args:
        accepted: the JSON Schemas of the template's inputs, by name.
        idempotency_key: the same key gives the same pictures; without a key they are new.

    Raises:
        InvalidRequest, UnsupportedFeature: the template has no input for a member.
    """
    if "prompt" not in accepted:
        raise InvalidRequest(f"template {template!r} has no input 'prompt'", field="model")
    inputs: dict[str, Any] = {
        **body.inputs,
        "prompt": body.prompt,
        **_size(body, template, accepted),
    }
    for name, ordinary in _OPTIONS.items():
        value = getattr(body, name)
        if name in accepted and value is not None:
            inputs[name] = value
        elif value not in ordinary:
            raise UnsupportedFeature(f"template {template!r} has no input {name!r}", field=name)
    job = {"kind": "render", "template": template, "inputs": inputs, "cache": cache}
    count = body.n or 1
    if "seed" in accepted and not (count == 1 and "seed" in inputs):
        job["batch"] = {"seeds": _seeds(count, accepted["seed"], inputs, idempotency_key)}
    elif count > 1:
        raise UnsupportedFeature(
            f"n must be 1: template {template!r} has no input 'seed', so all pictures would be equal",
            field="n",
        )
    if body.user is not None:
        job["metadata"] = {"user": body.user}
    return job


def rename_field(error: MoyinError) -> MoyinError:
    """Replace the job's field in ``error`` by the client's field."""
    if error.field is not None:
        field = _FIELDS.get(error.field)
        if field is not None:
            error.message = error.message.replace(error.field, field, 1)
            error.field = field
    return error


def _size(
    body: ImagesBody, template: str, accepted: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    if body.size in (None, "auto"):
        return {}
    match = _SIZE.fullmatch(body.size or "")
    if match is None:
        raise InvalidRequest("size must be a size such as 1024x1024, or auto", field="size")
    if not {"width", "height"} <= accepted.keys():
        raise UnsupportedFeature(
            f"size is not supported: template {template!r} has no inputs 'width' and 'height'",
            field="size",
        )
    return {"width": int(match[1]), "height": int(match[2])}


def _seeds(
    count: int, schema: Mapping[str, Any], inputs: Mapping[str, Any], key: str | None
) -> list[int]:
    """Return random seeds, so that a repeat gives other pictures, or count up from a given seed."""
    low, high = int(schema.get("minimum", 0)), int(schema.get("maximum", 2**32 - 1))
    first = inputs.get("seed")
    if isinstance(first, int):
        return list(range(first, first + count))
    choices = max(1, high - low + 2 - count)
    if key is None:
        start = secrets.randbelow(choices)
    else:
        start = int.from_bytes(hashlib.sha256(key.encode()).digest()) % choices
    return list(range(low + start, low + start + count))
