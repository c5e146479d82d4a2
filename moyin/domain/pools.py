"""Holds the tenants and the node classes that a render pool accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["DISK_NODES", "PoolRules", "matches_any"]

# Stock node classes that use the worker's own disk: they list or load folders, write files that
# belong to no job, and write or train models.
DISK_NODES = (
    "Load*FromFolder*",
    "Save*ToFolder*",
    "LoadTrainingDataset",
    "SaveTrainingDataset",
    "Train*Node",
    "LossGraphNode",
    "CheckpointSave",
    "ImageOnlyCheckpointSave",
    "CLIPSave",
    "VAESave",
    "ModelSave",
    "LoraSave",
    "SaveLoRA*",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRules:
    """The operator's rules for a pool. Patterns follow ``fnmatch`` and match node classes.

    Attributes:
        tenants: the owners whose jobs the pool runs; empty: all.
        allow: node classes that graphs may contain.
        deny: node classes that graphs may not contain; they win.
        unchecked: ``Class.input`` whose values are not checked as file names.
    """

    tenants: tuple[str, ...] = ()
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = DISK_NODES
    unchecked: tuple[str, ...] = ()

    def serves_tenant(self, owner: str) -> bool:
        return not self.tenants or owner in self.tenants

    def permits_node(self, class_type: str) -> bool:
        return matches_any(class_type, self.allow) and not matches_any(class_type, self.deny)

    def checks_input(self, class_type: str, name: str) -> bool:
        """Tell if an input's value is checked as the name of a file."""
        return not matches_any(f"{class_type}.{name}", self.unchecked)


def matches_any(text: str, patterns: Iterable[str]) -> bool:
    """Tell if any of the patterns matches ``text``. Case matters on every platform."""
    return any(fnmatchcase(text, pattern) for pattern in patterns)
