"""Tests that the judge does not see the models' names, and how its verdict is assigned to them."""

from __future__ import annotations

import json

import pytest

from moyin.text.judging.verdict import VERDICT_SCHEMA, Verdict, build_judge_request, parse_verdict


def text_of(swapped: bool) -> str:
    request = build_judge_request("opus", "Q", "GIVEN", "OTHER", is_swapped=swapped)
    text: str = request["messages"][1]["content"]
    return text


def test_judge_request_follows_the_order_and_names_no_model() -> None:
    unswapped_text, swapped_text = text_of(False), text_of(True)
    assert unswapped_text.index("GIVEN") < unswapped_text.index("OTHER")
    assert swapped_text.index("OTHER") < swapped_text.index("GIVEN")
    for text in (unswapped_text, swapped_text):
        assert text.index(" first answer>>") < text.index(" second answer>>")
        assert "opus" not in text


def test_text_cannot_fake_the_end_of_its_section() -> None:
    marks = {text_of(False).split(" ", 1)[0] for _ in range(20)}
    assert len(marks) == 20


@pytest.mark.parametrize("swapped", [False, True])
def test_grades_are_mapped_back_through_the_order(swapped: bool) -> None:
    text = json.dumps({"reason": "x", "first": 4, "second": 1})
    given_grade, other_grade = (0.25, 1.0) if swapped else (1.0, 0.25)
    assert parse_verdict(text, is_swapped=swapped) == Verdict(given=given_grade, other=other_grade)


def test_verdict_agrees_unless_the_clients_answer_is_worse() -> None:
    assert Verdict(given=0.5, other=0.5).agrees
    assert Verdict(given=1.0, other=0.5).agrees
    assert not Verdict(given=0.25, other=0.5).agrees


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The first is better.",
        '{"reason": "x", "first": 4}',
        '{"reason": "x", "first": 5, "second": 1}',
        '{"reason": "x", "first": -1, "second": 1}',
        '{"reason": "x", "first": "4", "second": 1}',
        '{"reason": "x", "first": true, "second": 1}',
        '{"reason": "x", "first": 2.5, "second": 1}',
        '{"reason": "x", "first": 4, "second": 1, "third": 0}',
        '```json\n{"reason": "x", "first": 4, "second": 1}\n```',
        '[{"reason": "x", "first": 4, "second": 1}]',
        '{"first": 4, "second": 1}',
    ],
)
def test_verdict_with_the_wrong_format_is_ignored(text: str) -> None:
    assert parse_verdict(text, is_swapped=False) is None


def test_judge_request_demands_the_schema() -> None:
    request = build_judge_request("opus", "Q", "a", "b", is_swapped=False)
    assert request["response_format"]["json_schema"]["schema"] == VERDICT_SCHEMA
