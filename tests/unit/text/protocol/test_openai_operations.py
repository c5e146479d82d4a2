"""Tests calls other than chats: invalid ones, what is reserved for them, and what is billed."""

from __future__ import annotations

import io
import json
import wave
from typing import Any

import pytest

from moyin.domain.money import Usage
from moyin.errors import InvalidRequest, MoyinError, UnsupportedFeature
from moyin.http.multipart import FormFile, MultipartForm
from moyin.text.audio import read_duration_seconds
from moyin.text.protocol.openai.operations import (
    parse_moderation,
    parse_rerank,
    parse_speech,
    read_token_usage,
)
from moyin.text.protocol.openai.uploads import (
    ImageEditRequest,
    ImageVariationRequest,
    TranscriptionRequest,
)
from tests.unit.http.test_multipart import MemoryFile

MODERATION = {"input": "hello"}
RERANK = {"model": "m", "query": "q", "documents": ["a", "b"]}
SPEECH = {"model": "m", "input": "hello", "voice": "alloy"}
PARSERS: Any = {"moderation": parse_moderation, "rerank": parse_rerank, "speech": parse_speech}


@pytest.mark.parametrize(
    ("operation", "body", "field"),
    [
        ("moderation", {}, "input"),
        ("moderation", {"input": []}, "input"),
        ("moderation", {"input": 5}, "input"),
        ("moderation", {"input": [{"type": "text"}]}, "input.0.text"),
        (
            "moderation",
            {"input": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]},
            "input.0.image_url.url",
        ),
        ("rerank", {**RERANK, "documents": []}, "documents"),
        ("rerank", {**RERANK, "top_n": 0}, "top_n"),
        ("rerank", {**RERANK, "query": ""}, "query"),
        ("rerank", {**RERANK, "documents": [{"text": "a", "image": "u"}]}, "documents.0.image"),
        ("speech", {**SPEECH, "input": ""}, "input"),
        ("speech", {**SPEECH, "speed": 9}, "speed"),
        ("speech", {"input": "hello", "voice": "alloy"}, "model"),
        ("speech", {**SPEECH, "stream_format": "ws"}, "stream_format"),
    ],
)
def test_error_names_invalid_members_of_operations(
    operation: str, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(MoyinError) as exc_info:
        PARSERS[operation](json.dumps(body).encode())
    assert exc_info.value.field == field
    assert isinstance(exc_info.value, InvalidRequest | UnsupportedFeature)


def test_members_pass_to_the_back_end() -> None:
    request = parse_speech(
        json.dumps({**SPEECH, "instructions": "whisper", "x": {"y": 1}}).encode()
    )
    body = request.to_upstream("tts-1").get_content()
    assert isinstance(body, bytes)
    assert json.loads(body) == {
        **SPEECH,
        "model": "tts-1",
        "instructions": "whisper",
        "x": {"y": 1},
    }


def test_a_moderation_without_a_model_chooses_one() -> None:
    assert parse_moderation(b'{"input": "a"}').model == "auto"
    assert parse_moderation(b'{"input": "a", "model": null}').model == "auto"


def test_long_documents_may_be_several_searches() -> None:
    documents = ["x" * 499] * 100 + ["y" * 1000]
    request = parse_rerank(json.dumps({**RERANK, "documents": documents}).encode())
    assert request.expected_usage.quantity == 2
    assert request.max_usage.quantity == 2
    documents = ["x" * 5000] * 100
    request = parse_rerank(json.dumps({**RERANK, "documents": documents}).encode())
    assert (request.expected_usage.quantity, request.max_usage.quantity) == (1, 11)


@pytest.mark.parametrize(
    ("usage_member", "expected_usage"),
    [
        ({"prompt_tokens": 4, "total_tokens": 4}, Usage(input_tokens=4)),
        ({"total_tokens": 4}, Usage(input_tokens=4)),
        ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, Usage(input_tokens=3, output_tokens=2)),
        ({"type": "duration", "seconds": 3}, Usage()),
        ({"total_tokens": "many"}, Usage()),
        (None, Usage()),
        ([], Usage()),
    ],
)  # fmt: skip
def test_tokens_have_several_names(usage_member: Any, expected_usage: Usage) -> None:
    assert read_token_usage({"usage": usage_member}) == expected_usage


def make_file(field: str, size: int = 10_000, name: str = "a") -> FormFile:
    content = MemoryFile(b"x" * size)
    return FormFile(field=field, name=name, content_type="", size=size, content=content)


def make_form(*files: FormFile, **fields: str) -> MultipartForm:
    return MultipartForm(fields=list(fields.items()), files=files)


def add_fields(form: MultipartForm, **fields: str) -> MultipartForm:
    """Return the form with further fields, whose names may already occur in it."""
    return MultipartForm(fields=[*form.fields, *fields.items()], files=form.files)


@pytest.mark.parametrize(
    ("response_body", "expected_seconds"),
    [
        ({"text": "a", "usage": {"type": "duration", "seconds": 3.2}}, 4),
        ({"text": "a", "duration": 7.0}, 7),
        ({"text": "a", "duration": "7.5"}, 8),
        ({"text": "a", "duration": "NaN"}, 12),
        ({"text": "a", "duration": -1}, 12),
        ({"text": "a"}, 12),
        (None, 12),
    ],
)
def test_seconds_are_those_of_the_back_end_or_of_the_file(
    response_body: Any, expected_seconds: int
) -> None:
    request = TranscriptionRequest(make_form(make_file("file"), model="m"), 11.5)
    usage = request.read_usage(response_body)
    assert usage.quantity == expected_seconds
    assert usage.is_estimated is (expected_seconds == 12)


def test_a_forged_length_neither_avoids_the_reservation_nor_inflates_the_estimate() -> None:
    upload = make_file("file", 30_000_000)
    short_request = TranscriptionRequest(make_form(upload, model="m"), 1.0)
    assert short_request.max_usage.quantity == 10_000
    long_request = TranscriptionRequest(make_form(upload, model="m"), 1e9)
    assert long_request.expected_usage.quantity == long_request.max_usage.quantity == 60_000
    unmeasured_request = TranscriptionRequest(make_form(upload, model="m"), None)
    assert unmeasured_request.max_usage.quantity == 60_000
    assert unmeasured_request.expected_usage.quantity == 7_500


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (make_form(model="m"), "file"),
        (make_form(make_file("file", 0), model="m"), "file"),
        (make_form(make_file("file"), make_file("file"), model="m"), "file"),
        (make_form(make_file("file")), "model"),
        (make_form(make_file("file"), model=""), "model"),
        (make_form(make_file("file"), model="m", url="http://127.0.0.1"), "url"),
    ],
)
def test_invalid_transcriptions_are_refused(form: MultipartForm, field: str) -> None:
    with pytest.raises((InvalidRequest, UnsupportedFeature)) as exc_info:
        TranscriptionRequest(form, None)
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (make_form(make_file("image")), "prompt"),
        (make_form(prompt="p"), "image"),
        (make_form(make_file("image"), prompt="p", n="0"), "n"),
        (make_form(make_file("image"), prompt="p", n="1.5"), "n"),
        (make_form(*[make_file("image[]")] * 17, prompt="p"), "image"),
        (add_fields(make_form(make_file("image"), prompt="p", n="10"), n="1"), "n"),
        (add_fields(make_form(make_file("image"), prompt="p"), prompt="q"), "prompt"),
        (add_fields(make_form(make_file("image"), prompt="p", model="m"), model="n"), "model"),
    ],
)
def test_invalid_image_edits_are_refused(form: MultipartForm, field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        ImageEditRequest(form)
    assert exc_info.value.field == field


def test_created_pictures_are_billed() -> None:
    request = ImageVariationRequest(make_form(make_file("image"), n="3"))
    assert request.max_usage.quantity == 3
    assert request.read_usage({"data": [{}, {}]}).quantity == 2
    assert request.read_usage({"data": [{}] * 4}).quantity == 4
    assert request.read_usage(None).quantity == 3


async def test_length_of_audio_is_measured() -> None:
    content = io.BytesIO()
    with wave.open(content, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(bytes(2 * 8000 * 3))
    assert await read_duration_seconds(content, "a.bin") == 3
    assert await read_duration_seconds(io.BytesIO(b"no audio at all"), "a.mp3") is None
    assert await read_duration_seconds(io.BytesIO(content.getvalue()[:20]), "a.wav") is None
