from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.parameter import Parameter, ParameterType
from moyin.errors import InvalidRequest

ART = "art_" + "0" * 32


def make_parameter(type_name: str, **constraints: Any) -> Parameter:
    return Parameter(name="x", type=ParameterType(type_name), **constraints)


@pytest.mark.parametrize(
    ("type_name", "constraints", "given_value", "expected_value"),
    [
        ("string", {}, "a", "a"),
        ("integer", {}, 5, 5),
        ("integer", {}, 5.0, 5),
        ("integer", {"maximum": 2**64 - 1}, 2**64 - 1, 2**64 - 1),
        ("number", {}, 5, 5),
        ("number", {"multiple_of": 0.1}, 0.3, 0.3),
        ("boolean", {}, False, False),
        ("string", {"choices": ("a", "b")}, "b", "b"),
        ("string", {"image": True}, ART, f"artifact:{ART}"),
        ("string", {"image": True}, f"artifact:{ART}", f"artifact:{ART}"),
    ],
)
def test_valid_value_keeps_its_type(
    type_name: str, constraints: dict[str, Any], given_value: Any, expected_value: Any
) -> None:
    value = make_parameter(type_name, **constraints).check_value(given_value, "inputs.x")
    assert (value, type(value)) == (expected_value, type(expected_value))


@pytest.mark.parametrize(
    ("type_name", "constraints", "value", "problem"),
    [
        ("string", {}, 5, "must be a string"),
        ("string", {}, ["1", 0], "must be a string"),
        ("integer", {}, "5", "must be an integer"),
        ("integer", {}, True, "must be an integer"),
        ("integer", {}, 5.5, "must be an integer"),
        ("number", {}, False, "must be a number"),
        ("boolean", {}, 1, "must be true or false"),
        ("string", {"choices": ("a", "b")}, "c", 'must be one of "a", "b"'),
        ("integer", {"minimum": 8}, 7, "must be at least 8"),
        ("integer", {"maximum": 2**64 - 1}, 2**64, f"must be at most {2**64 - 1}"),
        ("number", {"exclusive_minimum": 0}, 0, "must be more than 0"),
        ("number", {"exclusive_maximum": 1}, 1, "must be less than 1"),
        ("integer", {"multiple_of": 8}, 12, "must be a multiple of 8"),
        ("string", {"min_length": 1}, "", "must have at least 1 characters"),
        ("string", {"max_length": 1}, "ab", "must have at most 1 characters"),
        ("string", {"pattern": "^a"}, "b", "must match ^a"),
        ("string", {}, f"artifact:{ART}", "must not be the id of an artifact"),
        ("string", {"image": True}, "cat.png", "must be the id of an artifact"),
    ],
)
def test_invalid_value_error_states_the_valid_values(
    type_name: str, constraints: dict[str, Any], value: Any, problem: str
) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        make_parameter(type_name, **constraints).check_value(value, "inputs.x")
    assert exc_info.value.field == "inputs.x"
    assert problem in exc_info.value.message


def test_reference_object_has_only_a_valid_from() -> None:
    text_parameter = make_parameter("string")
    assert text_parameter.to_reference({"from": "steps.0.text"}, "f") == "${steps.0.text:string}"
    image_parameter = make_parameter("string", image=True)
    assert image_parameter.to_reference({"from": "steps.0.artifacts.0"}, "f") == (
        "${steps.0.artifacts.0:artifact}"
    )
    for not_a_reference in (
        {},
        {"from": 1},
        {"from": "${steps.0.text}"},
        {"from": "steps.0.text", "a": 1},
    ):
        with pytest.raises(InvalidRequest, match="from"):
            text_parameter.to_reference(not_a_reference, "f")
