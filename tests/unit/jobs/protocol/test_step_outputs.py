"""Tests that a job is refused if it refers to an output that no step of that kind has."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from moyin.errors import InvalidRequest
from moyin.jobs.protocol.request_to_domain import parse_job
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = {
    "kind": "chat",
    "request": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
RENDER = {"kind": "render", "workflow": {"6": {"class_type": "A", "inputs": {"seed": 1}}}}
HTTP = {"kind": "http", "request": {"path": "/svc"}}


def parse_pipeline(*steps: dict[str, Any]) -> None:
    templates = read_templates([SHIPPED_FOLDER])
    body = json.dumps({"kind": "pipeline", "steps": steps}).encode()
    parse_job(body, NOW, templates.find)


def make_chat_step(text: str) -> dict[str, Any]:
    request = {"model": "m", "messages": [{"role": "user", "content": f"see {text}"}]}
    return {"kind": "chat", "request": request}


def make_render_step(value: str) -> dict[str, Any]:
    return {"kind": "render", "workflow": {"6": {"class_type": "A", "inputs": {"text": value}}}}


@pytest.mark.parametrize(
    ("earlier_step", "later_step", "field"),
    [
        (RENDER, make_chat_step("${steps.0.text}"), "steps.1.request.messages.0.content"),
        (RENDER, make_render_step("${steps.0.text:string}"), "steps.1.workflow.6.inputs.text"),
        (
            RENDER,
            {"kind": "http", "request": {"path": "/${steps.0.text}"}},
            "steps.1.request.path",
        ),
        (
            RENDER,
            {
                "kind": "render",
                "template": "swatch",
                "inputs": {"seed": 3, "prompt": {"from": "steps.0.text"}},
            },
            "steps.1.inputs.prompt",
        ),
        (RENDER, make_chat_step("${steps.0.body.images}"), "steps.1.request.messages.0.content"),
        (RENDER, make_chat_step("${steps.0.record}"), "steps.1.request.messages.0.content"),
        (CHAT, make_chat_step("${steps.0.artifacts.0}"), "steps.1.request.messages.0.content"),
        (CHAT, make_chat_step("${steps.0.text.0}"), "steps.1.request.messages.0.content"),
        (
            RENDER,
            make_chat_step("${steps.0.artifacts.0.name}"),
            "steps.1.request.messages.0.content",
        ),
        (HTTP, make_chat_step("${steps.0.answer}"), "steps.1.request.messages.0.content"),
    ],
)
def test_output_that_the_earlier_step_never_has_is_refused(
    earlier_step: dict[str, Any], later_step: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_pipeline(earlier_step, later_step)
    assert exc_info.value.field == field
    assert exc_info.value.message.startswith(f"{field}: ${{steps.0.")


@pytest.mark.parametrize(
    ("earlier_step", "reference"),
    [
        # A node's text is a value of the output, such as that of PreviewAny.
        (RENDER, "${steps.0.body.outputs.6.text.0}"),
        (RENDER, "${steps.0.body}"),
        (RENDER, "${steps.0.artifacts.0}"),
        (RENDER, "${steps.0.artifacts.0.id}"),
        (RENDER, "${steps.0.artifacts.0.url}"),
        (CHAT, "${steps.0.text}"),
        (CHAT, "${steps.0.body.choices.0.message.content}"),
        (HTTP, "${steps.0.text}"),
        (HTTP, "${steps.0.artifacts.0}"),
    ],
)
def test_output_that_the_earlier_step_may_have_is_accepted(
    earlier_step: dict[str, Any], reference: str
) -> None:
    parse_pipeline(earlier_step, make_chat_step(reference))


def test_a_reference_is_checked_against_the_kind_of_its_step() -> None:
    parse_pipeline(CHAT, RENDER, make_chat_step("${steps.0.text}"))
    with pytest.raises(InvalidRequest) as exc_info:
        parse_pipeline(CHAT, RENDER, make_chat_step("${steps.0.text} ${steps.1.text}"))
    assert "${steps.1.text} cannot exist: a render has no text" in exc_info.value.message
    assert "body.outputs" in exc_info.value.message
