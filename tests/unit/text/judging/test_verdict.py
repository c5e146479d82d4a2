"""Tests that the judge sees no model's name, and that each answer gets the grade meant for it."""

from __future__ import annotations

import json

import pytest

from moyin.text.judging.verdict import VERDICT_SCHEMA, Verdict, build_judge_request, parse_verdict


def build_judge_prompt(swapped: bool) -> str:
    request = build_judge_request("opus", "Q", "GIVEN", "OTHER", is_swapped=swapped)
    prompt: str = request["messages"][1]["content"]
    return prompt


def test_judge_request_follows_the_order_and_names_no_model() -> None:
    unswapped_prompt, swapped_prompt = build_judge_prompt(False), build_judge_prompt(True)
    assert unswapped_prompt.index("GIVEN") < unswapped_prompt.index("OTHER")
    assert swapped_prompt.index("OTHER") < swapped_prompt.index("GIVEN")
    for prompt in (unswapped_prompt, swapped_prompt):
        assert prompt.index(" first answer>>") < prompt.index(" second answer>>")
        assert "opus" not in prompt


def test_delimiters_of_sections_are_random() -> None:
    delimiters = {build_judge_prompt(False).split(" ", 1)[0] for _ in range(20)}
    assert len(delimiters) == 20


@pytest.mark.parametrize("swapped", [False, True])
def test_grades_are_mapped_back_through_the_order(swapped: bool) -> None:
    verdict_text = json.dumps({"reason": "x", "first": 4, "second": 1})
    given_grade, other_grade = (0.25, 1.0) if swapped else (1.0, 0.25)
    assert parse_verdict(verdict_text, is_swapped=swapped) == Verdict(
        given=given_grade, other=other_grade
    )


def test_verdict_agrees_unless_the_clients_answer_is_worse() -> None:
    assert Verdict(given=0.5, other=0.5).agrees
    assert Verdict(given=1.0, other=0.5).agrees
    assert not Verdict(given=0.25, other=0.5).agrees


@pytest.mark.parametrize(
    "verdict_text",
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
def test_verdict_with_the_wrong_format_is_ignored(verdict_text: str) -> None:
    assert parse_verdict(verdict_text, is_swapped=False) is None


def test_judge_request_demands_the_schema() -> None:
    request = build_judge_request("opus", "Q", "a", "b", is_swapped=False)
    assert request["response_format"]["json_schema"]["schema"] == VERDICT_SCHEMA
