"""Tests that any bytes from ComfyUI become a harmless value or a `MoyinError`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from moyin.domain.prompt import PromptRecord
from moyin.domain.serialization import decode, encode, to_plain
from moyin.errors import MoyinError, WorkerLost
from moyin.render.comfyui.untrusted_json import (
    ENTRY_LIMITS,
    JsonLimits,
    MalformedResponse,
    ResponseTooDeep,
    ResponseTooLarge,
    normalize_untrusted_json,
    parse_untrusted_json,
    require_object,
)

_JSON_TOKENS = [
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\u", b"d83d", b"\\ud83d", b"\\ude00"),
    *(b"NaN", b"Infinity", b"-", b"1", b"9" * 400, b"1e999", b"true", b"null", b" ", b"\xff"),
    *(b"\xed\xa0\x80", b"\x00", b"\\u0000", b'"a":', b"[" * 200, b"]" * 200),
]
_ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from("\ud83d\ude00\0\\u"))
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _ANY_TEXT,
    lambda values: st.lists(values) | st.dictionaries(_ANY_TEXT, values),
)


def parse(content: bytes, limits: JsonLimits = ENTRY_LIMITS) -> Any:
    return parse_untrusted_json(content, limits, "response to GET /queue")


def nest(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("content", "error_class", "rule"),
    [
        (b"", MalformedResponse, "not JSON in UTF-8"),
        (b"<html>", MalformedResponse, "not JSON in UTF-8"),
        (b'"\xff"', MalformedResponse, "not JSON in UTF-8"),
        (b'"\xed\xa0\xbd"', MalformedResponse, "not JSON in UTF-8"),
        (b'"a\0b"', MalformedResponse, "not JSON in UTF-8"),
        (b'"' + b'\\"' * 1_000_000, MalformedResponse, "not JSON in UTF-8"),
        (nest(101), ResponseTooDeep, "limit of 100 levels of nesting"),
        (nest(700), ResponseTooDeep, "limit of 100 levels of nesting"),
        (nest(200_000), ResponseTooDeep, "limit of 100 levels of nesting"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, ResponseTooDeep, "limit of 100 levels of nesting"),
        (b'[["' + b"]" * 200 + b'"' + nest(150), ResponseTooDeep, "100 levels of nesting"),
        (b"[" + b"[]," * 500_000 + b"[]]", ResponseTooLarge, "limit of 500,000 values"),
        (b'{"":' * 90 + b"[" + b"1," * 499_950, ResponseTooLarge, "limit of 500,000 values"),
        (b"9" * 301, ResponseTooLarge, "limit of 300 digits"),
        (b"[-" + b"9" * 5000 + b"]", ResponseTooLarge, "limit of 300 digits"),
        (b"1e" + b"9" * 5000, ResponseTooLarge, "limit of 300 digits"),
        (b" " * (8 * 1024 * 1024) + b"1", ResponseTooLarge, "limit of 8,388,608 bytes"),
    ],
    ids=repr,
)
def test_hostile_content_is_refused(content: bytes, error_class: type, rule: str) -> None:
    with pytest.raises(WorkerLost, match=rule) as exc_info:
        parse(content)
    assert type(exc_info.value) is error_class
    assert "response to GET /queue" in exc_info.value.message


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'"\\ud83d"', "\ufffd"),
        (b'"a\\uDE00\\ud83d\\ude00\\uD83Db"', "a\ufffd\U0001f600\ufffdb"),
        (b'"\\\\ud83d"', "\\ud83d"),
        (b'{"\\udfff": "\\u0000"}', {"\ufffd": "\ufffd"}),
        (b"[NaN, Infinity, -Infinity, 1e999, -1e999, 1.5]", [None, None, None, None, None, 1.5]),
        (b'["NaN", "' + b"[" * 500 + b"9" * 500 + b'"]', ["NaN", "[" * 500 + "9" * 500]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"9" * 300, int("9" * 300)),
        (b'"' + b"," * 600_000 + b'"', "," * 600_000),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_harmless_content_is_kept(content: bytes, value: Any) -> None:
    assert parse(content) == value
    assert from_json(normalize_untrusted_json(content, ENTRY_LIMITS, "entry")) == value


def test_permitted_depth_can_be_stored_and_read_in_a_record() -> None:
    record = PromptRecord(
        outputs={"1": {"text": parse(nest(100))}},
        meta={},
        status="success",
        completed=True,
        messages=(("executed", {"output": parse(nest(100))}),),
    )
    stored_json = to_json({"outputs": [{"body": {"record": to_plain(record)}}]})
    assert from_json(stored_json)
    assert decode(PromptRecord, encode(record)) == record


def test_other_values_than_objects_are_refused() -> None:
    assert require_object({}, "event") == {}
    values: tuple[Any, ...] = (None, [], 1, "text")
    for value in values:
        with pytest.raises(MalformedResponse, match="event is not a JSON object"):
            require_object(value, "event")


@given(st.lists(st.sampled_from(_JSON_TOKENS) | st.binary(max_size=8), max_size=60).map(b"".join))
def test_any_bytes_are_refused_or_become_a_harmless_value(content: bytes) -> None:
    try:
        value = parse(content)
    except MoyinError:
        return
    assert_is_harmless(value)


@given(_ANY_JSON)
def test_any_value_of_a_node_becomes_a_harmless_value(value: Any) -> None:
    content = json.dumps(value).encode()
    try:
        parsed_value = parse(content)
    except (ResponseTooDeep, ResponseTooLarge):
        return
    assert_is_harmless(parsed_value)


def assert_is_harmless(value: Any) -> None:
    """Check that all consumers of the value accept it, and that no text has a NUL."""
    content = to_json(value)
    assert b"\\u0000" not in content.replace(b"\\\\", b"")
    assert from_json(content, allow_inf_nan=False) == value
    assert json.loads(content) == value
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
