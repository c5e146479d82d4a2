"""ComfyUI's history and events to the renderer's vocabulary; pure."""

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
    "as_placed",
    "ended",
    "files_of",
    "placed",
    "prompt_of",
    "raise_failure",
    "record_of",
    "values",
    "written",
]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# No more than Python makes a number of.
_DIGITS = re.compile(r"([0-9]{1,4000})")
_DONE = ("finished", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """A file in ComfyUI's folders and the node and slot that put it out."""

    node: str
    slot: str
    file: OutputFile


def written(entry: HistoryEntry) -> list[WrittenFile]:
    """All files of a prompt, by node id (2 before 10) and in each node's own order."""
    return [
        WrittenFile(node=node, slot=slot, file=file)
        for node, slot, items in _slots(entry)
        for item in items
        if (file := _file(item)) is not None
    ]


def values(entry: HistoryEntry) -> dict[str, dict[str, Any]]:
    """By node and slot, what is not a file."""
    found: dict[str, dict[str, Any]] = {}
    for node, slot, items in _slots(entry):
        rest = [item for item in items if _file(item) is None]
        if rest:
            found.setdefault(node, {})[slot] = rest
    return found


def files_of(output: Any) -> Iterator[OutputFile]:
    """The files in what one node put out."""
    for items in output.values() if isinstance(output, Mapping) else ():
        for item in items if isinstance(items, list | tuple) else [items]:
            file = _file(item)
            if file is not None:
                yield file


def placed(file: OutputFile, prompt_id: str) -> ComfyFileName:
    """Under which name the farm knows a file that a prompt put out.

    The bridge puts a prompt's files into a folder named after it. What came out of ComfyUI's cache
    lies in that of another prompt, maybe of another owner, whose id is nobody's business.
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


def as_placed(output: Any, prompt_id: str) -> Any:
    """What one node put out, with its files under the farm's names."""
    if not isinstance(output, Mapping):
        return output
    return {
        slot: [_as_placed(item, prompt_id) for item in items]
        if isinstance(items, list | tuple)
        else _as_placed(items, prompt_id)
        for slot, items in output.items()
    }


def record_of(entry: HistoryEntry, prompt_id: str) -> PromptRecord:
    """What to keep of a history entry, but for its files."""
    return PromptRecord(
        outputs={node: as_placed(output, prompt_id) for node, output in entry.outputs.items()},
        meta=entry.meta,
        status=entry.status.status_str,
        completed=entry.status.completed,
        messages=tuple(entry.status.messages),
    )


def raise_failure(entry: HistoryEntry) -> None:
    """Return when the prompt succeeded.

    Raises:
        OutOfMemory: the card's memory did not suffice.
        RenderFailed: a node raised (``details``: its id, type and the exception's type), or the
            prompt was interrupted.
    """
    if entry.status.status_str == "success":
        return
    for name, data in reversed(entry.status.messages):
        if name == "execution_error":
            raise _node_failure(data)
        if name == "execution_interrupted":
            raise RenderFailed("the render was interrupted", details=_node(data))
    raise RenderFailed("ComfyUI gave up without saying why")


def prompt_of(message: Message) -> str | None:
    """Which prompt an event is about."""
    prompt_id = message.data.get("prompt_id")
    return prompt_id if isinstance(prompt_id, str) else None


def ended(message: Message) -> bool:
    """Whether this is the last event of its prompt: by now it is in the history."""
    return message.type == "executing" and message.data.get("node", "") is None


class Meter:
    """Adds a prompt's events up to one progress over all of its nodes."""

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
        """Take an event; whether it changed anything."""
        if message.type == "execution_cached":
            self._cached = {node for node in message.data.get("nodes", []) if node in self._graph}
            return True
        if message.type != "progress_state":
            return False
        for node_id, state in message.data.get("nodes", {}).items():
            # Nodes that a node expands into are not in the graph: its own progress stands for them.
            if node_id in self._graph:
                self._parts[node_id] = _fraction(state)
                if state.get("state") == "running":
                    self.node = node_id
        return True


def _fraction(state: Mapping[str, Any]) -> float:
    if state.get("state") in _DONE:
        return 1.0
    value, top = float(state.get("value", 0)), float(state.get("max", 0))
    return min(1.0, max(0.0, value / top)) if top > 0 else 0.0


def _as_placed(item: Any, prompt_id: str) -> Any:
    file = _file(item)
    return item if file is None else {**item, "subfolder": placed(file, prompt_id).subfolder}


def _slots(entry: HistoryEntry) -> Iterator[tuple[str, str, list[Any]]]:
    for node in sorted(entry.outputs, key=_natural):
        for slot, items in entry.outputs[node].items():
            yield node, slot, list(items) if isinstance(items, list | tuple) else [items]


def _natural(node: str) -> list[tuple[int, str]]:
    # Every other part is one of digits.
    parts = enumerate(_DIGITS.split(node))
    return [(int(part), "") if place % 2 else (0, part) for place, part in parts]


def _file(item: Any) -> OutputFile | None:
    if not isinstance(item, Mapping) or "filename" not in item:
        return None
    try:
        return OutputFile.model_validate(item)
    except ValidationError:
        # A file of the client's own input folder is not an output.
        return None


def _node_failure(data: Mapping[str, Any]) -> RenderFailed:
    message = str(data.get("exception_message", "")).strip() or "it did not say why"
    where = f"node {data.get('node_id')} ({data.get('node_type')})"
    # Torch has moved the exception about, and not renamed it.
    is_memory = str(data.get("exception_type", "")).endswith("OutOfMemoryError")
    kind = OutOfMemory if is_memory else RenderFailed
    return kind(f"{where} failed: {message}", details=_node(data))


def _node(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("node_id", "node_type", "exception_type")
    return {key: data[key] for key in kept if data.get(key) is not None}
