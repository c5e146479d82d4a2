"""Translates ComfyUI's history entries and events to the types of `moyin.domain`."""

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
    """An output file of a prompt, with the node and the output slot that name it."""

    node: str
    slot: str
    file: OutputFile


def written_files(entry: HistoryEntry) -> list[WrittenFile]:
    """Return a prompt's output files, sorted by node id (2 before 10) and in each node's order."""
    return [
        WrittenFile(node=node, slot=slot, file=file)
        for node, slot, items in _slots(entry)
        for item in items
        if (file := _file(item)) is not None
    ]


def output_values(entry: HistoryEntry) -> dict[str, dict[str, Any]]:
    """Return a prompt's outputs other than files, by node id and slot."""
    values: dict[str, dict[str, Any]] = {}
    for node, slot, items in _slots(entry):
        slot_values = [item for item in items if _file(item) is None]
        if slot_values:
            values.setdefault(node, {})[slot] = slot_values
    return values


def files_of(output: Any) -> Iterator[OutputFile]:
    """Yield the files that one node's output names."""
    for items in output.values() if isinstance(output, Mapping) else ():
        for item in items if isinstance(items, list | tuple) else [items]:
            file = _file(item)
            if file is not None:
                yield file


def farm_name(file: OutputFile, prompt_id: str) -> ComfyFileName:
    """Return the name of a prompt's output file, which is unique among all ComfyUI processes.

    `moyin.render.comfyui.bridge` makes each node write into a folder named after the prompt. A file
    from ComfyUI's cache is in the folder of an earlier prompt, whose id is replaced by a digest
    because it may belong to another tenant.
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
    """Return one node's output with each file renamed by `farm_name`."""
    if not isinstance(output, Mapping):
        return output
    return {
        slot: [_with_farm_name(item, prompt_id) for item in items]
        if isinstance(items, list | tuple)
        else _with_farm_name(items, prompt_id)
        for slot, items in output.items()
    }


def record_of(entry: HistoryEntry, prompt_id: str) -> PromptRecord:
    """Convert a history entry to a record without files."""
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
    """Raise an error if the history entry is that of a failed prompt.

    Raises:
        OutOfMemory: A node needed more GPU memory than is available.
        RenderFailed: A node raised an exception, or the prompt was interrupted. ``details`` has the
            id and type of the node and the type of the exception.
    """
    if entry.status.status_str == "success":
        return
    for name, data in reversed(entry.status.messages):
        if name == "execution_error":
            raise _node_failure(data)
        if name == "execution_interrupted":
            raise RenderFailed(
                f"the render was interrupted while node {data.get('node_id')} was executed",
                details=_node(data),
            )
    raise RenderFailed("the render failed, but ComfyUI's history entry contains no error")


def prompt_of(message: Message) -> str | None:
    """Return the prompt id in an event, or None if the event has none."""
    prompt_id = message.data.get("prompt_id")
    return prompt_id if isinstance(prompt_id, str) else None


def is_last_event(message: Message) -> bool:
    """Return whether an event is the last one of its prompt, which follows the history entry."""
    return message.type == "executing" and message.data.get("node", "") is None


class Meter:
    """Calculates the progress of a prompt from its events.

    Attributes:
        node: id of the node that is being executed, or None before the first one.
        max: number of nodes.
    """

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph = graph
        self._cached: set[str] = set()
        self._parts: dict[str, float] = {}
        self.node: str | None = None
        self.max = max(1, len(graph))

    @property
    def value(self) -> float:
        """The number of executed nodes, including fractions."""
        parts = sum(part for node, part in self._parts.items() if node not in self._cached)
        return min(float(self.max), len(self._cached) + parts)

    def feed(self, message: Message) -> bool:
        """Process an event, and return whether the progress may have changed."""
        if message.type == "execution_cached":
            self._cached = {node for node in message.data.get("nodes", []) if node in self._graph}
            return True
        if message.type != "progress_state":
            return False
        for node_id, state in message.data.get("nodes", {}).items():
            # A node may expand into nodes that are not in the graph; its progress includes them.
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
    # `re.split` with a group returns the matches, which are digits, at odd positions.
    parts = enumerate(_DIGITS.split(node))
    return [(int(part), "") if position % 2 else (0, part) for position, part in parts]


def _file(item: Any) -> OutputFile | None:
    if not isinstance(item, Mapping) or "filename" not in item:
        return None
    try:
        return OutputFile.model_validate(item)
    except ValidationError:
        return None  # a file of the type `input` is not an output


def _node_failure(data: Mapping[str, Any]) -> RenderFailed:
    message = str(data.get("exception_message", "")).strip() or "its exception has no message"
    node = f"node {data.get('node_id')} ({data.get('node_type')})"
    # The exception's module differs between versions of torch; its name does not.
    is_memory = str(data.get("exception_type", "")).endswith("OutOfMemoryError")
    error_class = OutOfMemory if is_memory else RenderFailed
    return error_class(f"{node} failed: {message}", details=_node(data))


def _node(data: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("node_id", "node_type", "exception_type")
    return {key: data[key] for key in keys if data.get(key) is not None}
