"""The ``args`` of a render app in serve_config.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ComfyArgs", "RenderArgs"]


class ComfyArgs(BaseModel):
    """How the pool's ComfyUIs are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: str | None = Field(
        None, description="Folder of models; none: ComfyUI's own, or one in the data folder."
    )
    custom_nodes: tuple[str, ...] = Field(
        (), description="Folders of node packages; relative ones lie in ComfyUI's folder."
    )
    flags: tuple[str, ...] = Field((), description="More arguments for ComfyUI.")
    start_timeout: float = Field(180, gt=0, description="Seconds until the first prompt is done.")
    progress_timeout: float = Field(
        900, gt=0, description="Seconds without progress after which a render has failed."
    )


class RenderArgs(BaseModel):
    """The ``args`` of a render app in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    actors: int = Field(1, ge=1, le=256, description="ComfyUI processes.")
    gpus: float = Field(1, gt=0, le=1, description="Share of a GPU that each takes.")
    cpus: float = Field(0.5, ge=0, description="Ray CPUs that each takes.")
    window: int = Field(
        4, ge=1, le=64, description="Jobs that wait here, and not in Temporal, for a renderer."
    )
    drain_timeout: float = Field(
        60, ge=0, description="Seconds that renders may go on after the app is removed or changed."
    )
    comfyui: ComfyArgs = ComfyArgs()
