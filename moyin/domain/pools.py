"""Whom a render pool serves, and which of its nodes a graph may have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["DISK_NODES", "PoolRules", "matches"]

# Stock classes that are about the worker's own disk: they list or load folders, write files that are
# nobody's output, write models, or train them.
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
    """What a pool's operator has said of it. Patterns are those of ``fnmatch``, by node class.

    Attributes:
        tenants: the owners whose jobs it runs; none: everybody's.
        allow: classes that graphs may have.
        deny: those of them that graphs may not have.
        unchecked: ``Class.input`` whose values are not looked at as names of files.
    """

    tenants: tuple[str, ...] = ()
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = DISK_NODES
    unchecked: tuple[str, ...] = ()

    def serves_tenant(self, owner: str) -> bool:
        return not self.tenants or owner in self.tenants

    def permits_node(self, class_type: str) -> bool:
        return matches(class_type, self.allow) and not matches(class_type, self.deny)

    def checks_input(self, class_type: str, name: str) -> bool:
        """Whether an input's value is looked at as the name of a file."""
        return not matches(f"{class_type}.{name}", self.unchecked)


def matches(text: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns fits; upper and lower case are told apart everywhere."""
    return any(fnmatchcase(text, pattern) for pattern in patterns)
