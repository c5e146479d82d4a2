"""Collects the searchable text of a job's request, for the index of `moyin.store.job_words`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moyin.domain.job import JobSpec, Step, StepKind
from moyin.store.job_words import MAX_TEXT_BYTES

# Members of chat requests, in all protocols, that contain text, messages or parts with text.
_TEXT_MEMBERS = ("system", "instructions", "prompt", "messages", "input", "content", "text")
_MAX_DEPTH = 8
# The most inputs of a graph that are searched for text; most inputs are numbers and links.
_MAX_INPUTS = 20_000


def collect_text(spec: JobSpec) -> str:
    """Return the values of metadata, the texts of chats, and the texts in the inputs of graphs.

    Requests of http steps are left out, because they may contain credentials. The result is at
    most slightly longer than the text that the search can index.
    """
    texts, total_length = list[str](), 0
    for text in _iterate_texts(spec):
        texts.append(text[:MAX_TEXT_BYTES])
        total_length += len(texts[-1]) + 1
        if total_length >= MAX_TEXT_BYTES:
            break
    return "\n".join(texts)


def _iterate_texts(spec: JobSpec) -> Iterator[str]:
    yield from spec.metadata.values()
    is_patch = spec.base is not None
    # Texts of a batch's children come first, because they distinguish batches of the same template.
    for step in spec.steps:
        yield from _iterate_step_texts(step, is_patch)
    if spec.base is not None:
        yield from _iterate_graph_texts(spec.base.values())


def _iterate_step_texts(step: Step, is_patch: bool) -> Iterator[str]:
    if step.kind is StepKind.CHAT:
        yield from _iterate_request_texts(step.payload, 0)
    elif step.kind is StepKind.RENDER:
        yield from _iterate_input_texts(step.inputs.values())
        nodes = step.payload.values()
        yield from _iterate_graph_texts(({"inputs": node} for node in nodes) if is_patch else nodes)


def _iterate_request_texts(content: Any, depth: int) -> Iterator[str]:
    """Yield the texts in a part of a chat request, without those in its files and tools.

    Args:
        depth: the depth of the part in the request; parts deeper than `_MAX_DEPTH` are skipped.
    """
    if isinstance(content, str):
        yield content
    elif depth > _MAX_DEPTH:
        return
    elif isinstance(content, Mapping):
        for name in _TEXT_MEMBERS:
            if name in content:
                yield from _iterate_request_texts(content[name], depth + 1)
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _iterate_request_texts(item, depth + 1)


def _iterate_graph_texts(nodes: Iterable[Any]) -> Iterator[str]:
    input_count = 0
    for node in nodes:
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if isinstance(inputs, Mapping):
            yield from _iterate_input_texts(inputs.values())
            input_count += len(inputs)
        if input_count > _MAX_INPUTS:
            return


def _iterate_input_texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        # Ids of files are left out, because nobody searches for them.
        if isinstance(value, str) and not value.startswith("artifact:"):
            yield value
