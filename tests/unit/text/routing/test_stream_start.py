"""Tests which faults of an answer are already detected at the beginning of its stream."""

from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.chat import (
    Delta,
    Finished,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
)
from moyin.domain.money import Usage
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.text.routing.answer_checks import NO_FAULT, find_start_fault

JSON = ResponseConstraints(json=True)
PLAIN = ResponseConstraints(tools=frozenset({"look_up"}))


def make_transcript(*deltas: Delta) -> Transcript:
    transcript = Transcript()
    transcript.add(deltas)
    return transcript


def make_finished_event(stop: StopReason = StopReason.END) -> Finished:
    return Finished(stop=stop, usage=Usage())


def make_constraints(**keywords: Any) -> ResponseConstraints:
    return ResponseConstraints(json=True, schema=keywords)


@pytest.mark.parametrize(
    "text", ["{", ' \n{"a"', "[1", '"a', "-1", "7", "t", "true", "null", "NaN"]
)
def test_valid_start_of_json_has_no_fault(text: str) -> None:
    assert find_start_fault(make_transcript(TextDelta(text=text)), JSON) == NO_FAULT


@pytest.mark.parametrize(
    "text", ["Sure", "```json\n{", "the", "nothing", "None", "\ufeff{", "<think>"]
)
def test_invalid_start_of_json_is_a_fault(text: str) -> None:
    assert find_start_fault(make_transcript(TextDelta(text=text)), JSON) == "json"
    assert find_start_fault(make_transcript(TextDelta(text=text)), PLAIN) == NO_FAULT


@pytest.mark.parametrize(
    ("constraints", "text", "expected_fault"),
    [
        (make_constraints(type="object"), "[", "schema"),
        (make_constraints(type="object"), "{", NO_FAULT),
        (make_constraints(type=["array", "null"]), "null", NO_FAULT),
        (make_constraints(type=["array", "null"]), "1", "schema"),
        (make_constraints(type="integer"), "1", NO_FAULT),
        (make_constraints(type="boolean"), "f", NO_FAULT),
        (make_constraints(anyOf=[{"type": "object"}]), "[", NO_FAULT),
        ({"$ref": "#/$defs/a", "type": "object"}, "[", NO_FAULT),
    ],
)
def test_type_of_a_schema_is_checked_by_the_first_character(
    constraints: Any, text: str, expected_fault: str
) -> None:
    constraints = (
        constraints
        if isinstance(constraints, ResponseConstraints)
        else ResponseConstraints(json=True, schema=constraints)
    )
    assert find_start_fault(make_transcript(TextDelta(text=text)), constraints) == expected_fault


@pytest.mark.parametrize("text", ["", "  \n", "<|im_end|>", "</s> ", "<|start_header_id|>\n"])
def test_white_space_and_template_marks_are_not_checked_yet(text: str) -> None:
    assert find_start_fault(make_transcript(TextDelta(text=text)), PLAIN) is None
    assert (
        find_start_fault(make_transcript(TextDelta(text=text), make_finished_event()), PLAIN)
        == "empty"
    )
    # The client's own limit or stop sequence may have ended it.
    for stop in (StopReason.MAX_TOKENS, StopReason.STOP_SEQUENCE):
        assert (
            find_start_fault(
                make_transcript(TextDelta(text=text), make_finished_event(stop)), PLAIN
            )
            == NO_FAULT
        )


def test_a_refusal_is_no_fault() -> None:
    assert (
        find_start_fault(make_transcript(make_finished_event(StopReason.REFUSAL)), JSON) == NO_FAULT
    )


def test_a_tool_that_does_not_exist_is_a_fault() -> None:
    def start_tool(name: str) -> Delta:
        return ToolStarted(index=0, id="1", name=name)

    assert find_start_fault(make_transcript(start_tool("look_up")), PLAIN) == NO_FAULT
    assert find_start_fault(make_transcript(start_tool("lookup")), PLAIN) == "tool_name"
    transcript = make_transcript(
        start_tool("look_up"),
        ToolArguments(index=0, fragment="{"),
        make_finished_event(StopReason.TOOL_USE),
    )
    assert find_start_fault(transcript, PLAIN) == "tool_arguments"


def test_reasoning_at_the_start_is_no_fault() -> None:
    assert find_start_fault(make_transcript(ThinkingDelta(text="Let")), JSON) == NO_FAULT


def test_unreadable_stream_is_no_fault() -> None:
    transcript = make_transcript(TextDelta(text="Sure"))
    transcript.mark_unreadable()
    assert find_start_fault(transcript, JSON) == NO_FAULT


def test_only_the_end_of_a_long_text_is_checked() -> None:
    transcript = make_transcript(
        *[TextDelta(text="a" * 1_000) for _ in range(200)], TextDelta(text="end")
    )
    assert (transcript.is_complete, transcript.is_readable) == (False, True)
    assert len(transcript.text) <= 64 * 1024 + 1_000
    assert transcript.text.endswith("aend")
