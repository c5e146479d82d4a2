"""Shapes that ComfyUI sends, as far as they are used. Unknown members are ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = [
    "HISTORY",
    "HistoryEntry",
    "Message",
    "OutputFile",
    "PromptAccepted",
    "QueueBody",
    "SystemStats",
]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OutputFile(_Shape):
    """A file that a node wrote; ``type`` names the folder under which ``subfolder`` lies."""

    filename: str
    subfolder: str = ""
    type: Literal["output", "temp"]


class HistoryStatus(_Shape):
    """``messages`` are pairs of event name and data, in order."""

    status_str: Literal["success", "error"]
    completed: bool = False
    messages: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)


class HistoryEntry(_Shape):
    """``outputs``: by node id, then by slot (``images``, ``text``, …), lists of files or values."""

    outputs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)
    status: HistoryStatus


class PromptAccepted(_Shape):
    """The answer to ``POST /prompt``; outputs named in ``node_errors`` will be missing.
    ``number`` counts the prompts that this process has accepted."""

    prompt_id: str
    number: float
    node_errors: dict[str, Any] = Field(default_factory=dict)


class QueueBody(_Shape):
    """Rows are ``[number, prompt_id, prompt, extra_data, outputs]``."""

    queue_running: list[list[Any]]
    queue_pending: list[list[Any]]


class Device(_Shape):
    """``type`` is torch's: ``cuda`` (also of AMD's cards), ``cpu``, …; ``vram_total`` in bytes."""

    type: str
    vram_total: int


class SystemStats(_Shape):
    devices: list[Device] = Field(default_factory=list)


class Message(_Shape):
    """A text frame of the WebSocket."""

    type: str
    data: dict[str, Any] = Field(default_factory=dict)


HISTORY = TypeAdapter(dict[str, HistoryEntry])
