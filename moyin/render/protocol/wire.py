"""Defines the parts of ComfyUI's bodies and messages that Moyin reads; others are ignored."""

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


# Any text is accepted, and unknown ids are ignored; but PostgreSQL can't search for a NUL.
_PromptId = Annotated[str, Field(pattern=r"^[^\x00]*$")]
_ClientId = Annotated[str, Field(max_length=255)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OutputFile(_Model):
    """A file that a node wrote; ``type`` names the folder that contains ``subfolder``."""

    filename: str
    subfolder: str = ""
    type: Literal["output", "temp"]


class HistoryStatus(_Model):
    """The status in a history entry; ``messages`` are pairs of event name and data, in order."""

    status_str: Literal["success", "error"]
    completed: bool = False
    messages: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)


class HistoryEntry(_Model):
    """A prompt's entry in the history.

    Attributes:
        outputs: lists of files or values, by node id and slot (``images``, ``text``, …).
    """

    outputs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)
    status: HistoryStatus


class PromptState(_Model):
    """A prompt's state in ComfyUI: it waits or runs, has an ``entry`` in the history, or neither."""

    queued: bool
    entry: HistoryEntry | None = None


class PromptAccepted(_Model):
    """The response to ``POST /prompt``.

    Attributes:
        number: number of prompts that this process has accepted.
        node_errors: errors by node id; outputs that need these nodes will be missing.
    """

    prompt_id: str
    number: float
    node_errors: dict[str, Any] = Field(default_factory=dict)


class PromptBody(_Model):
    """Body of ``POST /prompt``; a client may choose ``prompt_id``, a canonical lower-case UUID."""

    prompt: dict[str, Any]
    client_id: _ClientId | None = None
    prompt_id: str | None = Field(
        None, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", max_length=36
    )
    number: float | None = Field(None, allow_inf_nan=False)
    front: bool | None = None
    extra_data: dict[str, Any] | None = None
    partial_execution_targets: list[str] | None = Field(None, max_length=1_000)


class IdsBody(_Model):
    """Body of ``POST /queue`` and ``POST /history``, which remove all or some of the own prompts.

    ``client_id`` is an extension of Moyin: it limits ``clear`` to the prompts of one client, with
    any of the tenant's keys.
    """

    clear: bool = False
    client_id: _ClientId | None = None
    delete: list[_PromptId] = Field(default_factory=list, max_length=10_000)

    @property
    def chosen(self) -> list[str] | None:
        """The ids of the prompts to remove; None: all prompts."""
        return None if self.clear else self.delete


class InterruptBody(_Model):
    """Body of ``POST /interrupt``; without an id it interrupts the caller's running prompts.

    ``client_id`` is an extension of Moyin: it limits that to the prompts of one client.
    """

    prompt_id: _PromptId | None = None
    client_id: _ClientId | None = None


class CancelBody(_Model):
    """Body of ``POST /api/jobs/cancel``."""

    job_ids: list[_PromptId] = Field(max_length=10_000)


class Device(_Model):
    """A device in the system statistics.

    Attributes:
        type: torch's name: ``cuda`` (also for AMD's GPUs), ``cpu``, ….
        vram_total: bytes of memory.
    """

    type: str
    vram_total: int


class SystemStats(_Model):
    """The response to ``GET /system_stats``."""

    devices: list[Device] = Field(default_factory=list)


class Message(_Model):
    """A text frame of the WebSocket."""

    type: str
    data: dict[str, Any] = Field(default_factory=dict)
