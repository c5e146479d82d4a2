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
from moyin.render.protocol.wire import EventMessage, HistoryEntry, OutputFile

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The most digits of a number, because Python refuses to parse longer ones.
_DIGITS = re.compile(r"([0-9]{1,4000})")
# A message of an exception may have megabytes, but the error is stored in several places.
_MAX_ERROR_MESSAGE = 4_000
_MAX_ERROR_DETAIL = 255
_FAILURES = frozenset({"execution_error", "execution_interrupted"})
_FINISHED_STATES = ("finished", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeOutputFile:
    """An output file of a prompt, with the node and the output slot that produced it."""

    node: str
    slot: str
    file: OutputFile


def list_output_files(entry: HistoryEntry) -> list[NodeOutputFile]:
    """Return a prompt's output files, sorted by the numbers of the nodes (2 before 10).

    The files of one node keep their order.
    """
    return [
        NodeOutputFile(node=node, slot=slot, file=file)
        for node, slot, items in _iterate_slots(entry)
        for item in items
        if (file := _parse_file(item)) is not None
    ]


def collect_values(entry: HistoryEntry) -> dict[str, dict[str, Any]]:
    """Return a prompt's outputs other than files, by node id and slot."""
    values: dict[str, dict[str, Any]] = {}
    for node, slot, items in _iterate_slots(entry):
        slot_values = [item for item in items if _parse_file(item) is None]
        if slot_values:
            values.setdefault(node, {})[slot] = slot_values
    return values


def find_files(output: Any) -> Iterator[OutputFile]:
    for items in output.values() if isinstance(output, Mapping) else ():
        for item in items if isinstance(items, list | tuple) else [items]:
            file = _parse_file(item)
            if file is not None:
                yield file


def make_unique_name(file: OutputFile, prompt_id: str) -> ComfyFileName:
    """Return the new name of a prompt's output file, which is unique among all ComfyUI processes.

    `moyin.render.comfyui.bridge` makes each node write into a folder named after the prompt. A file
    from ComfyUI's cache is in the folder of an earlier prompt, whose id is replaced by a digest
    because it may belong to another tenant.
    """
    first_folder, _, subfolders = file.subfolder.partition("/")
    if first_folder == prompt_id:
        subfolder = file.subfolder
    elif _UUID.fullmatch(first_folder):
        origin_digest = hashlib.sha256(first_folder.encode()).hexdigest()[:8]
        subfolder = "/".join(
            segment for segment in (prompt_id, origin_digest, subfolders) if segment
        )
    else:
        subfolder = "/".join(segment for segment in (prompt_id, file.subfolder) if segment)
    return ComfyFileName(filename=file.filename, subfolder=subfolder, type=file.type)


def replace_file_names(output: Any, prompt_id: str) -> Any:
    """Return one node's output with each file renamed by `make_unique_name`."""
    if not isinstance(output, Mapping):
        return output
    return {
        slot: [_replace_file_name(item, prompt_id) for item in items]
        if isinstance(items, list | tuple)
        else _replace_file_name(items, prompt_id)
        for slot, items in output.items()
    }


def to_prompt_record(entry: HistoryEntry, prompt_id: str) -> PromptRecord:
    """Convert a history entry to a record without files."""
    return PromptRecord(
        outputs={
            node: replace_file_names(output, prompt_id) for node, output in entry.outputs.items()
        },
        meta=entry.meta,
        status="success" if has_succeeded(entry) else "error",
        completed=has_succeeded(entry),
        messages=tuple(entry.status.messages),
    )


def has_succeeded(entry: HistoryEntry) -> bool:
    """Return whether the messages of a history entry show that ComfyUI has completed the prompt.

    ``status_str`` is not reliable. ComfyUI sets it after each node, so it stays ``success`` if the
    execution fails between two nodes, for example because an expanded node contains a cycle.
    """
    names = {name for name, _ in entry.status.messages}
    return "execution_success" in names and names.isdisjoint(_FAILURES)


def raise_for_failure(entry: HistoryEntry) -> None:
    """Raise an error if the history entry shows that the prompt has failed.

    Raises:
        OutOfMemory: A node needed more GPU memory than is available.
        RenderFailed: A node raised an exception, or the prompt was interrupted. ``details`` has the
            id and type of the node and the type of the exception.
    """
    if has_succeeded(entry):
        return
    for name, data in reversed(entry.status.messages):
        if name == "execution_error":
            raise _make_node_error(data)
        if name == "execution_interrupted":
            raise RenderFailed(
                f"the render was interrupted while node {_read_label(data, 'node_id')} was executed",
                details=_select_node_details(data),
            )
    raise RenderFailed(
        "the render ended before all of its nodes were executed, and ComfyUI reported no error; see "
        "ComfyUI's log"
    )


def get_prompt_id(message: EventMessage) -> str | None:
    """Return the prompt id in an event, or None if the event has none."""
    prompt_id = message.data.get("prompt_id")
    return prompt_id if isinstance(prompt_id, str) else None


def is_last_event(message: EventMessage) -> bool:
    """Return whether this is a prompt's last event.

    ComfyUI sends the last event after it has written the prompt's history entry.
    """
    return message.type == "executing" and message.data.get("node", "") is None


class ProgressMeter:
    """Calculates the progress of a prompt from its events.

    Attributes:
        node: id of the node that is being executed, or None before the first one.
        max: number of the graph's nodes, but at least 1.
    """

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph = graph
        self._cached_nodes: set[str] = set()
        self._fractions: dict[str, float] = {}
        self.node: str | None = None
        self.max = max(1, len(graph))

    @property
    def value(self) -> float:
        """The number of executed nodes, including fractions."""
        fraction_sum = sum(
            fraction for node, fraction in self._fractions.items() if node not in self._cached_nodes
        )
        return min(float(self.max), len(self._cached_nodes) + fraction_sum)

    def update(self, message: EventMessage) -> bool:
        """Process an event, and return whether the progress may have changed."""
        if message.type == "execution_cached":
            self._cached_nodes = {
                node for node in message.data.get("nodes", []) if node in self._graph
            }
            return True
        if message.type != "progress_state":
            return False
        for node_id, state in message.data.get("nodes", {}).items():
            # Skip nodes into which another node expands: the progress of that node includes them.
            if node_id in self._graph:
                self._fractions[node_id] = _calculate_fraction(state)
                if state.get("state") == "running":
                    self.node = node_id
        return True


def _calculate_fraction(state: Mapping[str, Any]) -> float:
    if state.get("state") in _FINISHED_STATES:
        return 1.0
    value, maximum = float(state.get("value", 0)), float(state.get("max", 0))
    return min(1.0, max(0.0, value / maximum)) if maximum > 0 else 0.0


def _replace_file_name(item: Any, prompt_id: str) -> Any:
    file = _parse_file(item)
    return (
        item if file is None else {**item, "subfolder": make_unique_name(file, prompt_id).subfolder}
    )


def _iterate_slots(entry: HistoryEntry) -> Iterator[tuple[str, str, list[Any]]]:
    for node in sorted(entry.outputs, key=_make_sort_key):
        for slot, items in entry.outputs[node].items():
            yield node, slot, list(items) if isinstance(items, list | tuple) else [items]


def _make_sort_key(node: str) -> list[tuple[int, str]]:
    # `re.split` with a group returns the groups, which are digits here, at odd positions.
    parts = enumerate(_DIGITS.split(node))
    return [(int(part), "") if position % 2 else (0, part) for position, part in parts]


def _parse_file(item: Any) -> OutputFile | None:
    if not isinstance(item, Mapping) or "filename" not in item:
        return None
    try:
        return OutputFile.model_validate(item)
    except ValidationError:
        return None  # a file of the type `input` is not an output


def _make_node_error(data: Mapping[str, Any]) -> RenderFailed:
    message = str(data.get("exception_message", ""))[:_MAX_ERROR_MESSAGE].strip()
    message = message or "its exception has no message"
    node_label = f"node {_read_label(data, 'node_id')} ({_read_label(data, 'node_type')})"
    # Compare only the name of the exception, because its module differs between versions of torch.
    is_out_of_memory = str(data.get("exception_type", "")).endswith("OutOfMemoryError")
    error_class = OutOfMemory if is_out_of_memory else RenderFailed
    return error_class(f"{node_label} failed: {message}", details=_select_node_details(data))


def _select_node_details(data: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("node_id", "node_type", "exception_type")
    return {key: _read_label(data, key) for key in keys if data.get(key) is not None}


def _read_label(data: Mapping[str, Any], key: str) -> Any:
    """Return a member that ComfyUI sets to a name, shortened because a node may have set it."""
    value = data.get(key)
    return value if isinstance(value, int | None) else str(value)[:_MAX_ERROR_DETAIL]
