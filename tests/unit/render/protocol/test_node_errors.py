"""Tests how the errors of ComfyUI's validation are reduced for the row of a job."""

from __future__ import annotations

from typing import Any

import pytest

from moyin.render.protocol.node_errors import MAX_NODES, summarize_node_errors

MISSING_MODEL = {
    "type": "value_not_in_list",
    "message": "Value not in list",
    "details": "ckpt_name: 'gone' not in ['a', 'b']",
    "extra_info": {"input_name": "ckpt_name", "input_config": [["a", "b"] * 9_999]},
}


def test_an_error_keeps_its_texts_and_the_name_of_its_input() -> None:
    node_errors = {
        "4": {"class_type": "Loader", "errors": [MISSING_MODEL], "dependent_outputs": ["9"]}
    }
    assert summarize_node_errors(node_errors) == {
        "4": {
            "class_type": "Loader",
            "errors": [{**MISSING_MODEL, "extra_info": {"input_name": "ckpt_name"}}],
            "dependent_outputs": ["9"],
        }
    }


def test_large_reports_are_bounded() -> None:
    long_error = {**MISSING_MODEL, "details": "\0" + "x" * 10_000}
    node_error = {"class_type": "A", "errors": [long_error] * 99, "dependent_outputs": ["9"] * 99}
    summary = summarize_node_errors({str(number): node_error for number in range(999)})
    assert len(summary) == MAX_NODES
    assert len(summary["0"]["errors"]) == 3
    assert len(summary["0"]["dependent_outputs"]) == 10
    details = summary["0"]["errors"][0]["details"]
    assert (len(details), details[0], details[-1]) == (256, "\N{REPLACEMENT CHARACTER}", "…")


@pytest.mark.parametrize(
    "node_errors", [None, [], "x", {"1": None}, {"1": {"errors": "x"}}, {"1": {"errors": [None]}}]
)
def test_malformed_parts_are_left_out(node_errors: Any) -> None:
    summary = summarize_node_errors(node_errors)
    assert all(node_error["errors"] == [] for node_error in summary.values())
