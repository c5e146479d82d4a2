"""Defines the members of ComfyUI's bodies and messages that Moyin reads, and ignores all others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Any text is a valid id, because unknown ids are ignored, except for NUL, which PostgreSQL rejects.
_PromptId = Annotated[str, Field(pattern=r"^[^\x00]*$")]
_ClientId = Annotated[str, Field(max_length=255)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OutputFile(_Model):
    """A file that a node wrote, at ``<folder of the type>/<subfolder>/<filename>``."""

    filename: str
    subfolder: str = ""
    type: Literal["output", "temp"]


class HistoryStatus(_Model):
    """The status in a history entry; ``messages`` has the name and the data of each event."""

    messages: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)


class HistoryEntry(_Model):
    """ComfyUI's history entry of a prompt.

    Attributes:
        outputs: lists of files or values, by node id and output name, such as ``images``.
    """

    outputs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)
    status: HistoryStatus


class PromptState(_Model):
    """The state of a prompt.

    Attributes:
        queued: True while the prompt waits or runs.
        entry: the history entry, or None until the prompt has ended.
    """

    queued: bool
    entry: HistoryEntry | None = None


class PromptAccepted(_Model):
    """The response to ``POST /prompt``.

    Attributes:
        number: number of prompts that this ComfyUI process has accepted so far.
        node_errors: validation errors by node id; outputs that need these nodes are not executed.
    """

    prompt_id: str
    number: float
    node_errors: dict[str, Any] = Field(default_factory=dict)


class PromptBody(_Model):
    """The body of ``POST /prompt``; ``prompt_id`` is an optional lower-case UUID."""

    prompt: dict[str, Any]
    client_id: _ClientId | None = None
    prompt_id: str | None = Field(
        None, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", max_length=36
    )
    number: float | None = Field(None, allow_inf_nan=False)
    front: bool | None = None
    extra_data: dict[str, Any] | None = None
    partial_execution_targets: list[str] | None = Field(None, max_length=1_000)


class RemovalBody(_Model):
    """The body of ``POST /queue`` and ``POST /history``, which remove prompts of the caller.

    The member ``client_id``, which exists only in Moyin, restricts ``clear`` to one client's
    prompts.
    """

    clear: bool = False
    client_id: _ClientId | None = None
    delete: list[_PromptId] = Field(default_factory=list, max_length=10_000)

    @property
    def prompt_ids(self) -> list[str] | None:
        """The ids of the prompts to remove, or None to remove all prompts."""
        return None if self.clear else self.delete


class InterruptBody(_Model):
    """The body of ``POST /interrupt``.

    Without ``prompt_id``, all running prompts of the caller are interrupted. The member
    ``client_id``, which exists only in Moyin, restricts the interruption to one client's prompts.
    """

    prompt_id: _PromptId | None = None
    client_id: _ClientId | None = None


class CancelBody(_Model):
    """The body of ``POST /api/jobs/cancel``."""

    job_ids: list[_PromptId] = Field(max_length=10_000)


class Device(_Model):
    """A processor that ComfyUI uses.

    Attributes:
        type: PyTorch's device type, such as ``cpu``, or ``cuda`` for GPUs of NVIDIA and AMD.
        vram_total: size of the processor's memory in bytes.
    """

    type: str
    vram_total: int = Field(ge=0, le=2**60)


class SystemStats(_Model):
    """The response to ``GET /system_stats``."""

    devices: list[Device] = Field(default_factory=list)


class EventMessage(_Model):
    """An event that ComfyUI sends as a text frame of its WebSocket.

    Attributes:
        byte_count: size of the frame, which the reader of the WebSocket sets.
    """

    type: str = Field(max_length=255)
    data: dict[str, Any] = Field(default_factory=dict)
    byte_count: int = 0
