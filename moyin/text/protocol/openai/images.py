"""``POST /v1/images/generations``: shapes, and translation to a job and back. Pure.

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

__all__ = ["ImagesBody", "parse", "renamed", "to_job"]

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MAX_IMAGES = 10
# OpenAI's own, which a template may have an input for; what asks for nothing special is left out.
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
# Where in the client's words the fields of the job are.
_FIELDS = {
    "template": "model",
    "inputs.prompt": "prompt",
    "inputs.width": "size",
    "inputs.height": "size",
    "batch.seeds": "n",
    **{f"inputs.{name}": name for name in _OPTIONS},
}


class ImagesBody(WireModel):
    """``model`` is a template with an input ``prompt``. ``size`` sets its inputs ``width`` and
    ``height``, ``n`` its ``seed``; ``inputs`` has what else it takes."""

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
    """
    Raises:
        InvalidJson, InvalidRequest: naming the field.
        UnsupportedFeature: a member that nobody here knows.
    """
    parsed = validate(ImagesBody, parse_object(body))
    for name in parsed.extras:
        raise UnsupportedFeature(f"{name[:64]} is not known here", field=name[:64])
    return parsed


def to_job(
    body: ImagesBody,
    template: str,
    takes: Mapping[str, Mapping[str, Any]],
    *,
    cache: bool,
    idempotency_key: str | None,
) -> dict[str, Any]:
    """The request of ``POST /jobs`` that renders the pictures, one child each.

    Args:
        takes: the JSON Schemas of the template's inputs, by name.
        idempotency_key: a repeat under it asks for the same pictures; without one they are new.

    Raises:
        InvalidRequest, UnsupportedFeature: the template has no input for what is asked.
    """
    if "prompt" not in takes:
        raise InvalidRequest(f"template {template!r} takes no prompt", field="model")
    inputs: dict[str, Any] = {**body.inputs, "prompt": body.prompt, **_size(body, template, takes)}
    for name, ordinary in _OPTIONS.items():
        value = getattr(body, name)
        if name in takes and value is not None:
            inputs[name] = value
        elif value not in ordinary:
            raise UnsupportedFeature(f"template {template!r} has no input {name!r}", field=name)
    job = {"kind": "render", "template": template, "inputs": inputs, "cache": cache}
    count = body.n or 1
    if "seed" in takes and not (count == 1 and "seed" in inputs):
        job["batch"] = {"seeds": _seeds(count, takes["seed"], inputs, idempotency_key)}
    elif count > 1:
        raise UnsupportedFeature(
            f"template {template!r} has no input 'seed': its pictures would be equal",
            field="n",
        )
    if body.user is not None:
        job["metadata"] = {"user": body.user}
    return job


def renamed(error: MoyinError) -> MoyinError:
    """``error`` of the jobs API, in the words of this one."""
    if error.field is not None:
        found = _FIELDS.get(error.field)
        if found is not None:
            error.message = error.message.replace(error.field, found, 1)
            error.field = found
    return error


def _size(
    body: ImagesBody, template: str, takes: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    if body.size in (None, "auto"):
        return {}
    match = _SIZE.fullmatch(body.size or "")
    if match is None:
        raise InvalidRequest("size must be such as 1024x1024, or auto", field="size")
    if not {"width", "height"} <= takes.keys():
        raise UnsupportedFeature(f"template {template!r} has one size only", field="size")
    return {"width": int(match[1]), "height": int(match[2])}


def _seeds(
    count: int, schema: Mapping[str, Any], inputs: Mapping[str, Any], key: str | None
) -> list[int]:
    """Random, so that asking again gives other pictures; counting up from a given one."""
    low, high = int(schema.get("minimum", 0)), int(schema.get("maximum", 2**32 - 1))
    given = inputs.get("seed")
    if isinstance(given, int):
        return list(range(given, given + count))
    room = max(1, high - low + 2 - count)
    if key is None:
        start = secrets.randbelow(room)
    else:
        start = int.from_bytes(hashlib.sha256(key.encode()).digest()) % room
    return list(range(low + start, low + start + count))
