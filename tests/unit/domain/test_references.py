from __future__ import annotations

import pytest

from moyin.domain.references import (
    check_references,
    escape_references,
    has_references,
    resolve_references,
)
from moyin.errors import InvalidRequest

OUTPUTS = [
    {"text": "a fox", "artifacts": ["artifact:art_1"], "body": {"n": [3, {"x": True}]}},
]


@pytest.mark.parametrize(
    ("payload", "resolved_payload"),
    [
        ("${steps.0.text}", "a fox"),
        ("paint ${steps.0.text}!", "paint a fox!"),
        ("${steps.0.body.n}", [3, {"x": True}]),
        ("${steps.0.body.n.1.x}", True),
        (
            {"6": {"inputs": {"image": "${steps.0.artifacts.0}"}}},
            {"6": {"inputs": {"image": "artifact:art_1"}}},
        ),
        ("${steps.0.artifacts.0.id}", "art_1"),
        ("${steps.0.artifacts.0.url:string}", "/artifacts/art_1"),
        (["$${steps.0.text}", 1, None], ["${steps.0.text}", 1, None]),
        ("${other}", "${other}"),
    ],
)
def test_references_are_replaced_by_earlier_outputs(
    payload: object, resolved_payload: object
) -> None:
    assert resolve_references(payload, OUTPUTS) == resolved_payload


@pytest.mark.parametrize(
    "payload",
    [
        "${steps.1.text}",
        "${steps.0.nothing}",
        "${steps.0.body.n.9}",
        "${steps.0.text.x}",
        "${steps.0.artifacts.0.name}",
        f"${{steps.{'9' * 5_000}.text}}",
        f"${{steps.0.body.n.{'9' * 5_000}}}",
    ],
)
def test_error_names_unresolved_reference(payload: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        resolve_references(payload, OUTPUTS)
    assert payload in exc_info.value.message


def test_step_may_only_refer_to_earlier_steps() -> None:
    check_references({"a": ["${steps.0.text}"]}, 1)
    with pytest.raises(InvalidRequest) as exc_info:
        check_references({"a": ["${steps.1.text}"]}, 1)
    assert exc_info.value.field == "steps.1"
    with pytest.raises(InvalidRequest):
        check_references({"a": [f"${{steps.{'9' * 5_000}.text}}"]}, 1)


def test_has_references_ignores_escaped_ones() -> None:
    assert has_references({"a": ["x", "see ${steps.0.text}"]})
    assert not has_references({"a": ["${steps}", "$${steps.0.text}"]})
    assert not has_references(escape_references({"a": "${steps.0.text}"}))
