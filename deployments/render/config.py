"""Defines the ``args`` of the app ``render-<pool>`` in serve_config.yaml."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import Field, field_validator, model_validator

from deployments.replicas import StrictModel
from moyin.domain.limits import DISK_NODES, PoolRules
from moyin.domain.render_run import RenderPrice
from moyin.render.comfyui.options import Isolation, Network


class ComfyArgs(StrictModel):
    """The options of the pool's ComfyUI processes."""

    models: str | None = Field(
        None, description="Folder of models; none: ComfyUI's own, or one in the data folder."
    )
    custom_nodes: tuple[str, ...] = Field(
        (), description="Folders of node packages; relative paths start at ComfyUI's folder."
    )
    flags: tuple[str, ...] = Field((), description="Additional arguments for ComfyUI.")
    warm_up: dict[str, Any] | None = Field(
        None, description="A graph in API format that is rendered before the first job."
    )
    start_timeout: float = Field(
        180, gt=0, description="Seconds that a process has until its first prompts are done."
    )
    progress_timeout: float = Field(
        900, gt=0, description="Seconds without progress after which a render fails."
    )
    isolation: Isolation = Field(
        Isolation.STRICT,
        description="`strict`: the kernel confines each process, which sees only the files of the "
        "prompt that it executes; `files`: it sees only these files, but is not confined; `off`: like "
        "`files`, and it gets the stack's environment.",
    )
    network: Network = Field(
        Network.NONE, description="Network of a strictly isolated process: `none` or `host`."
    )
    readable: tuple[str, ...] = Field(
        (), description="Additional folders that a strictly isolated process may read."
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description="GiB of memory that a strictly isolated process and the processes which it starts "
        "may use together, without files in the page cache; none: nine tenths of the machine's, or of its container's. A "
        "render that uses more fails with `resource_limit`.",
    )
    processes: int = Field(
        1024,
        ge=8,
        le=65_536,
        description="Largest number of processes of a strictly isolated process; it can't start more.",
    )
    disk_gib: float = Field(
        64,
        gt=0,
        description="GiB of disk space that the files of a strictly isolated process may take during a "
        "render, which fails with `resource_limit` beyond it.",
    )
    files: int = Field(
        100_000,
        ge=100,
        description="Number of files and folders that a strictly isolated process may write during a "
        "render, which fails with `resource_limit` beyond it.",
    )
    environment: tuple[str, ...] = Field(
        (), description="Environment variables to pass besides those that rendering needs."
    )

    process_per_tenant: bool = Field(
        False,
        description="A process renders for one tenant until it is restarted, so that node packages "
        "keep nothing of a tenant in memory for another.",
    )

    @field_validator("readable")
    @classmethod
    def _require_absolute(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not folder.startswith("/"):
                raise ValueError(f"must contain absolute paths only, not {folder!r}")
        return folders


class CacheArgs(StrictModel):
    """The options of the cache, which returns stored results for equal graphs."""

    enabled: bool = Field(True, description="Use the cache; a job can opt out for itself.")
    ttl_s: int = Field(
        7 * 86_400, ge=1, le=365 * 86_400, description="Seconds for which a result is kept."
    )
    entries: int = Field(10_000, ge=1, description="Results kept per tenant, at most.")
    shared: bool = Field(False, description="Tenants may get each other's results.")
    version: str = Field(
        "", description="Change it when models or nodes change without a change of their names."
    )


class NodesArgs(StrictModel):
    """Patterns of node classes that graphs may contain, with wildcards ``*``, ``?``, ``[ab]``."""

    allow: tuple[str, ...] = Field(("*",), description="Patterns of allowed classes.")
    deny: tuple[str, ...] = Field(
        DISK_NODES,
        description="Patterns of classes that are denied although `allow` matches them; by default "
        "ComfyUI's own classes that read or write the worker's disk. Your list replaces the default.",
    )
    unchecked: tuple[str, ...] = Field(
        (),
        description="Patterns of `Class.input` whose values are not checked as file names, because "
        "they name no file, or one that every tenant may read.",
    )


class RenderArgs(StrictModel):
    """The ``args`` of the app ``render-<pool>`` in serve_config.yaml."""

    pool: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    actors: int = Field(1, ge=1, le=256, description="Number of ComfyUI processes, at most.")
    min_actors: int | None = Field(
        None, ge=0, description="Number of ComfyUI processes of an idle pool; none: all of them."
    )
    idle_timeout: float = Field(
        300,
        gt=0,
        description="Seconds without a render after which a process beyond `min_actors` ends.",
    )
    queue_patience: float = Field(
        30, gt=0, description="Seconds of work that may wait per process before another starts."
    )
    gpus: float = Field(1, gt=0, le=1, description="Share of a GPU per process.")
    cpus: float = Field(0.5, ge=0, description="Ray CPUs per process.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Ray node labels that the processes' nodes must have."
    )
    accelerator: str | None = Field(None, description="Ray's name of the GPU, such as L4.")
    larger_pool: str | None = Field(
        None, description="The pool that gets renders which need more memory than this one has."
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Weights by owner id: an owner of weight 2 gets two turns for one of others.",
    )
    window: int = Field(
        16,
        ge=1,
        le=4096,
        description="Jobs that wait in the pool, which orders them, and not in Temporal: ten to "
        "twenty per process keep models loaded and owners even.",
    )
    drain_timeout: float = Field(
        60, ge=0, description="Seconds that renders may go on after the app is removed or changed."
    )
    tenants: tuple[str, ...] = Field(
        (), description="Owner ids whose jobs this pool runs; none: those of all owners."
    )
    usd_per_gpu_hour: Decimal | None = Field(
        None,
        ge=0,
        le=1000,
        decimal_places=6,
        description="Price of an hour of the whole GPU; a render pays for its time and for the share "
        "of its process (`gpus`).",
    )
    usd_per_picture: Decimal | None = Field(
        None,
        ge=0,
        le=1000,
        decimal_places=6,
        description="Price of each picture of a successful render, instead of `usd_per_gpu_hour`.",
    )
    expected_seconds: float = Field(
        60,
        gt=0,
        le=86_400,
        description="Seconds on the GPU that budgets reserve for a render before the pool has measured "
        "any.",
    )
    nodes: NodesArgs = NodesArgs()
    comfyui: ComfyArgs = ComfyArgs()
    cache: CacheArgs = CacheArgs()

    def to_rules(self) -> PoolRules:
        """Return the rules for the tenants and node classes that the pool accepts."""
        return PoolRules(tenants=self.tenants, **self.nodes.model_dump())

    def to_price(self) -> RenderPrice | None:
        """Return the price of the pool's renders; None if they are free."""
        if self.usd_per_gpu_hour is None and self.usd_per_picture is None:
            return None
        return RenderPrice(
            usd_per_gpu_hour=self.usd_per_gpu_hour,
            gpu_share=Decimal(str(self.gpus)),
            usd_per_picture=self.usd_per_picture,
        )

    @model_validator(mode="after")
    def _check_consistency(self) -> RenderArgs:
        if self.min_actors is not None and self.min_actors > self.actors:
            raise ValueError(f"min_actors: must not be larger than actors, which is {self.actors}")
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("weights: every weight must be larger than 0")
        if self.larger_pool == self.pool:
            raise ValueError(f"larger_pool: must be a pool other than {self.pool!r}")
        if self.usd_per_gpu_hour is not None and self.usd_per_picture is not None:
            raise ValueError("usd_per_picture: must not be set together with usd_per_gpu_hour")
        return self
