"""Tests which texts of a request are searchable."""

from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.job import JobSpec, Step, StepKind
from moyin.jobs.search_text import collect_text
from moyin.store.job_words import MAX_TEXT_BYTES

GRAPH: dict[str, Any] = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["2", 1]}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 7, "sampler_name": "euler"}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "artifact:art_1"}},
    "4": {"class_type": "Note"},
}


def collect_lines(*steps: Step, **kwargs: Any) -> list[str]:
    return collect_text(JobSpec(kind="pipeline", steps=steps, **kwargs)).splitlines()


def test_graphs_templates_and_metadata_are_searched() -> None:
    step = Step(kind=StepKind.RENDER, payload=GRAPH, inputs={"prompt": "a fox", "n": 3})
    assert collect_lines(step, metadata={"shot": "s12"}) == ["s12", "a fox", "a fox", "euler"]


def test_children_of_a_batch_are_searched() -> None:
    child = Step(kind=StepKind.RENDER, payload={"1": {"text": "a cat"}}, inputs={"prompt": "cat"})
    assert collect_lines(child, base=GRAPH) == ["cat", "a cat", "a fox", "euler"]


@pytest.mark.parametrize(
    "request_body",
    [
        {"messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}]},
        {
            "system": [{"type": "text", "text": "brief"}],
            "messages": [{"content": [{"text": "hi"}]}],
        },
        {"system": "brief", "prompt": "hi"},
        {"instructions": "brief", "input": [{"content": [{"type": "input_text", "text": "hi"}]}]},
    ],
)
def test_texts_of_all_chat_protocols_are_searched(request_body: dict[str, Any]) -> None:
    picture_message = {
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    }
    body = {"model": "gpt", "tools": [{"name": "secret"}], **request_body}
    if "messages" in body:
        body["messages"] = [*body["messages"], picture_message]
    assert collect_lines(Step(kind=StepKind.CHAT, payload=body)) == ["brief", "hi"]


def test_requests_of_http_steps_are_not_searched() -> None:
    payload = {"path": "/x", "headers": {"Authorization": "secret"}, "body": {"text": "secret"}}
    assert collect_lines(Step(kind=StepKind.HTTP, payload=payload)) == []


def test_long_deep_and_malformed_texts_are_bounded() -> None:
    nested_content: Any = "deep"
    for _ in range(100):
        nested_content = [nested_content]
    body = {"messages": [{"content": nested_content}, {"content": "x" * 9_000}, {"content": "y"}]}
    [text] = collect_lines(Step(kind=StepKind.CHAT, payload=body))
    assert len(text) == MAX_TEXT_BYTES
    assert collect_lines(Step(kind=StepKind.RENDER, payload={"1": 5, "2": {"inputs": []}})) == []
