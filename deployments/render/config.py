"""The ``args`` of a render app in serve_config.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moyin.domain.pools import DISK_NODES, PoolRules
from moyin.render.comfyui.options import Isolation, Network

__all__ = ["CacheArgs", "ComfyArgs", "NodesArgs", "RenderArgs"]


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
    warm_up: dict[str, Any] | None = Field(
        None, description="A graph in API format that is rendered before the first job."
    )
    start_timeout: float = Field(180, gt=0, description="Seconds until the first prompts are done.")
    progress_timeout: float = Field(
        900, gt=0, description="Seconds without progress after which a render has failed."
    )
    isolation: Isolation = Field(
        Isolation.STRICT,
        description="`strict`: the kernel confines each process, and it sees the files of the prompt "
        "that it executes; `files`: only the latter; `off`: like `files`, with the stack's environment.",
    )
    network: Network = Field(
        Network.NONE, description="What a strictly isolated process reaches: `none` or `host`."
    )
    readable: tuple[str, ...] = Field(
        (), description="More folders that a strictly isolated process may read."
    )
    environment: tuple[str, ...] = Field(
        (), description="Environment variables that it gets besides those that rendering needs."
    )

    @field_validator("readable")
    @classmethod
    def _absolute(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not folder.startswith("/"):
                raise ValueError(f"must be absolute paths, not {folder!r}")
        return folders


class CacheArgs(BaseModel):
    """Whether results are kept for graphs that come again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="Jobs may say no for themselves.")
    ttl_s: int = Field(7 * 86_400, ge=1, le=365 * 86_400, description="Seconds.")
    entries: int = Field(10_000, ge=1, description="Of each tenant, at most.")
    shared: bool = Field(False, description="Tenants may get each other's results.")
    version: str = Field(
        "", description="Change it when models or nodes have changed under their names."
    )


class NodesArgs(BaseModel):
    """Which node classes graphs may have. Patterns: ``*``, ``?``, ``[ab]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow: tuple[str, ...] = Field(("*",), description="Patterns of the classes.")
    deny: tuple[str, ...] = Field(
        DISK_NODES,
        description="Patterns of those of them that graphs may not have; by default ComfyUI's own "
        "that are about the worker's disk. A list of yours takes the place of these.",
    )
    unchecked: tuple[str, ...] = Field(
        (),
        description="Patterns of `Class.input` whose values are no names of files, or of files that "
        "every tenant may read.",
    )


class RenderArgs(BaseModel):
    """The ``args`` of a render app in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    actors: int = Field(1, ge=1, le=256, description="ComfyUI processes, at most.")
    min_actors: int | None = Field(
        None, ge=0, description="ComfyUI processes when nothing is to be done; none: all of them."
    )
    idle_timeout: float = Field(
        300, gt=0, description="Seconds without a render after which a process beyond these ends."
    )
    queue_patience: float = Field(
        30, gt=0, description="Seconds of work that may wait per process before another starts."
    )
    gpus: float = Field(1, gt=0, le=1, description="Share of a GPU that each takes.")
    cpus: float = Field(0.5, ge=0, description="Ray CPUs that each takes.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Ray node labels that the processes' nodes must have."
    )
    accelerator: str | None = Field(None, description="Ray's name of the card, such as L4.")
    larger_pool: str | None = Field(
        None, description="The pool that gets the renders which this one has no memory for."
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="By owner id, how many turns an owner gets for one of everybody else's.",
    )
    window: int = Field(
        16,
        ge=1,
        le=4096,
        description="Jobs that wait here, where they are ordered, and not in Temporal: "
        "ten to twenty for each process keep models loaded and owners even.",
    )
    drain_timeout: float = Field(
        60, ge=0, description="Seconds that renders may go on after the app is removed or changed."
    )
    tenants: tuple[str, ...] = Field(
        (), description="Owner ids whose jobs alone run here; none: everybody's."
    )
    nodes: NodesArgs = NodesArgs()
    comfyui: ComfyArgs = ComfyArgs()
    cache: CacheArgs = CacheArgs()

    def rules(self) -> PoolRules:
        """Return whom the pool serves, and with which nodes."""
        return PoolRules(tenants=self.tenants, **self.nodes.model_dump())

    @model_validator(mode="after")
    def _check(self) -> RenderArgs:
        if self.min_actors is not None and self.min_actors > self.actors:
            raise ValueError("min_actors must not be larger than actors")
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("weights must be larger than 0")
        if self.larger_pool == self.pool:
            raise ValueError("larger_pool must be another pool")
        return self
