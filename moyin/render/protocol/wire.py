"""Shapes that ComfyUI sends, as far as they are used. Unknown members are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "CancelBody",
    "HistoryEntry",
    "IdsBody",
    "InterruptBody",
    "Message",
    "OutputFile",
    "PromptAccepted",
    "PromptBody",
    "PromptState",
    "SystemStats",
]


# What no prompt is called is passed over; but PostgreSQL can't even look for a NUL.
_PromptId = Annotated[str, Field(pattern=r"^[^\x00]*$")]
_ClientId = Annotated[str, Field(max_length=255)]


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


class PromptState(_Shape):
    """How a prompt stands, by the bridge in ComfyUI's process: it waits or runs, or has an
    ``entry`` in the history, or is unknown."""

    queued: bool
    entry: HistoryEntry | None = None


class PromptAccepted(_Shape):
    """The answer to ``POST /prompt``; outputs named in ``node_errors`` will be missing.
    ``number`` counts the prompts that this process has accepted."""

    prompt_id: str
    number: float
    node_errors: dict[str, Any] = Field(default_factory=dict)


class PromptBody(_Shape):
    """``POST /prompt``. ``prompt_id``: a canonical lower-case UUID of the client's own making."""

    prompt: dict[str, Any]
    client_id: _ClientId | None = None
    prompt_id: str | None = Field(
        None, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", max_length=36
    )
    number: float | None = Field(None, allow_inf_nan=False)
    front: bool | None = None
    extra_data: dict[str, Any] | None = None
    partial_execution_targets: list[str] | None = Field(None, max_length=1_000)


class IdsBody(_Shape):
    """``POST /queue`` and ``POST /history``: the caller's own prompts, or some.

    ``client_id`` is not ComfyUI's: it narrows ``clear`` to one client's prompts, whoever's key
    queued them.
    """

    clear: bool = False
    client_id: _ClientId | None = None
    delete: list[_PromptId] = Field(default_factory=list, max_length=10_000)

    @property
    def chosen(self) -> list[str] | None:
        """None: all."""
        return None if self.clear else self.delete


class InterruptBody(_Shape):
    """``POST /interrupt``; without an id it is about the caller's own prompts that run, or those of
    one client (``client_id``, which is not ComfyUI's)."""

    prompt_id: _PromptId | None = None
    client_id: _ClientId | None = None


class CancelBody(_Shape):
    """``POST /api/jobs/cancel``."""

    job_ids: list[_PromptId] = Field(max_length=10_000)


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
