"""Translates ComfyUI's history and events to the renderer's types. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from moyin.domain.prompt import ComfyFileName, PromptRecord
from moyin.errors import OutOfMemory, RenderFailed
from moyin.render.protocol.wire import HistoryEntry, Message, OutputFile

__all__ = [
    "Meter",
    "WrittenFile",
    "farm_name",
    "files_of",
    "is_last_event",
    "output_values",
    "prompt_of",
    "raise_failure",
    "record_of",
    "with_farm_names",
    "written_files",
]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Python refuses to parse longer numbers.
_DIGITS = re.compile(r"([0-9]{1,4000})")
_FINISHED_STATES = ("finished", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """A file in ComfyUI's folders, with the node and slot of its output."""

    node: str
    slot: str
    file: OutputFile


def written_files(entry: HistoryEntry) -> list[WrittenFile]:
    """Return a prompt's output files, by node id (2 before 10), in each node's own order."""
    return [
        WrittenFile(node=node, slot=slot, file=file)
        for node, slot, items in _slots(entry)
        for item in items
        if (file := _file(item)) is not None
    ]


def output_values(entry: HistoryEntry) -> dict[str, dict[str, Any]]:
    """Return a prompt's outputs that are not files, by node and slot."""
    values: dict[str, dict[str, Any]] = {}
    for node, slot, items in _slots(entry):
        slot_values = [item for item in items if _file(item) is None]
        if slot_values:
            values.setdefault(node, {})[slot] = slot_values
    return values


def files_of(output: Any) -> Iterator[OutputFile]:
    """Yield the files in one node's output."""
    for items in output.values() if isinstance(output, Mapping) else ():
        for item in items if isinstance(items, list | tuple) else [items]:
            file = _file(item)
            if file is not None:
                yield file


def farm_name(file: OutputFile, prompt_id: str) -> ComfyFileName:
    """Return the name of a prompt's output file that is unique in the farm.

    The bridge puts a prompt's files into a folder named after it. A file from ComfyUI's cache lies
    in the folder of another prompt, maybe of another owner, whose id must not be shown.
    """
    first, _, rest = file.subfolder.partition("/")
    if first == prompt_id:
        subfolder = file.subfolder
    elif _UUID.fullmatch(first):
        origin = hashlib.sha256(first.encode()).hexdigest()[:8]
        subfolder = "/".join(part for part in (prompt_id, origin, rest) if part)
    else:
        subfolder = "/".join(part for part in (prompt_id, file.subfolder) if part)
    return ComfyFileName(filename=file.filename, subfolder=subfolder, type=file.type)


def with_farm_names(output: Any, prompt_id: str) -> Any:
    """Return one node's output, with its files under the farm's names."""
    if not isinstance(output, Mapping):
        return output
    return {
        slot: [_with_farm_name(item, prompt_id) for item in items]
        if isinstance(items, list | tuple)
        else _with_farm_name(items, prompt_id)
        for slot, items in output.items()
    }


def record_of(entry: HistoryEntry, prompt_id: str) -> PromptRecord:
    """Return the record of a history entry, without its files."""
    return PromptRecord(
        outputs={
            node: with_farm_names(output, prompt_id) for node, output in entry.outputs.items()
        },
        meta=entry.meta,
        status=entry.status.status_str,
        completed=entry.status.completed,
        messages=tuple(entry.status.messages),
    )


def raise_failure(entry: HistoryEntry) -> None:
    """Raise the error of a prompt that failed.

    Raises:
        OutOfMemory: the GPU's memory did not suffice.
        RenderFailed: a node raised an exception (``details``: the node's id and type, and the
            exception's type), or the prompt was interrupted.
    """
    if entry.status.status_str == "success":
        return
    for name, data in reversed(entry.status.messages):
        if name == "execution_error":
            raise _node_failure(data)
        if name == "execution_interrupted":
            raise RenderFailed("the render was interrupted", details=_node(data))
    raise RenderFailed("the render failed, and ComfyUI gave no reason")


def prompt_of(message: Message) -> str | None:
    """Return the id of the event's prompt; None if it names none."""
    prompt_id = message.data.get("prompt_id")
    return prompt_id if isinstance(prompt_id, str) else None


def is_last_event(message: Message) -> bool:
    """Return whether this is its prompt's last event, after which the history has its entry."""
    return message.type == "executing" and message.data.get("node", "") is None


class Meter:
    """Combines a prompt's events to one progress over all of its nodes."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph = graph
        self._cached: set[str] = set()
        self._parts: dict[str, float] = {}
        self.node: str | None = None
        self.max = max(1, len(graph))

    @property
    def value(self) -> float:
        parts = sum(part for node, part in self._parts.items() if node not in self._cached)
        return min(float(self.max), len(self._cached) + parts)

    def feed(self, message: Message) -> bool:
        """Take an event; return whether it may have changed the progress."""
        if message.type == "execution_cached":
            self._cached = {node for node in message.data.get("nodes", []) if node in self._graph}
            return True
        if message.type != "progress_state":
            return False
        for node_id, state in message.data.get("nodes", {}).items():
            # Nodes that a node expands into are not in the graph; its own progress covers them.
            if node_id in self._graph:
                self._parts[node_id] = _fraction(state)
                if state.get("state") == "running":
                    self.node = node_id
        return True


def _fraction(state: Mapping[str, Any]) -> float:
    if state.get("state") in _FINISHED_STATES:
        return 1.0
    value, maximum = float(state.get("value", 0)), float(state.get("max", 0))
    return min(1.0, max(0.0, value / maximum)) if maximum > 0 else 0.0


def _with_farm_name(item: Any, prompt_id: str) -> Any:
    file = _file(item)
    return item if file is None else {**item, "subfolder": farm_name(file, prompt_id).subfolder}


def _slots(entry: HistoryEntry) -> Iterator[tuple[str, str, list[Any]]]:
    for node in sorted(entry.outputs, key=_natural_order):
        for slot, items in entry.outputs[node].items():
            yield node, slot, list(items) if isinstance(items, list | tuple) else [items]


def _natural_order(node: str) -> list[tuple[int, str]]:
    # Parts with odd positions consist of digits.
    parts = enumerate(_DIGITS.split(node))
    return [(int(part), "") if position % 2 else (0, part) for position, part in parts]


def _file(item: Any) -> OutputFile | None:
    if not isinstance(item, Mapping) or "filename" not in item:
        return None
    try:
        return OutputFile.model_validate(item)
    except ValidationError:
        # A file in the client's own input folder is not an output.
        return None


def _node_failure(data: Mapping[str, Any]) -> RenderFailed:
    message = str(data.get("exception_message", "")).strip() or "it gave no reason"
    node = f"node {data.get('node_id')} ({data.get('node_type')})"
    # The exception's module differs between versions of torch; its name does not.
    is_memory = str(data.get("exception_type", "")).endswith("OutOfMemoryError")
    error_class = OutOfMemory if is_memory else RenderFailed
    return error_class(f"{node} failed: {message}", details=_node(data))


def _node(data: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("node_id", "node_type", "exception_type")
    return {key: data[key] for key in keys if data.get(key) is not None}
