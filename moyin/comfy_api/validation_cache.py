"""`ValidationCache`: graphs that ComfyUI has found valid lately, and those that are valid by the same word.

Most graphs that come are one that came before with another seed, size or text. Of such inputs
ComfyUI checks nothing but type and range; the bridge says which they are. To ask for every graph
would cost a twentieth of a small picture, and a submission waits while a node holds ComfyUI up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from moyin.system.bounded import BoundedDict

__all__ = ["Free", "ValidationCache"]

# A word is as good as what it was about: models and input files may go.
_SECONDS = 5.0
_REMEMBERED = 1024
_SCALARS = (str, int, float, bool)
_TYPES: dict[str, tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (float, int),
    "STRING": (str,),
    "BOOLEAN": (bool,),
}
# Type, least and greatest value (None: any) of inputs by node and name.
Free = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class _Verdict:
    until: float
    body: Mapping[str, Any]


class ValidationCache:
    """Remembers only good ones: an error says what is wrong with this very graph."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        # By shape: what is free in graphs of it.
        self._free: BoundedDict[str, Free] = BoundedDict(_REMEMBERED)
        self._good: BoundedDict[str, _Verdict] = BoundedDict(_REMEMBERED)

    def find(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None
    ) -> Mapping[str, Any] | None:
        """ComfyUI's body for a graph that is valid; None: it has to be asked."""
        shape = _shape(pool, graph, targets)
        free = None if shape is None else self._free.get(shape)
        if shape is None or free is None:
            return None
        fixed = []
        for node, name, value in _values(graph):
            bounds = free.get(node, {}).get(name)
            if bounds is None:
                fixed.append(value)
            elif not _fits(value, *bounds):
                return None
        known = _digest([shape, fixed])
        good = None if known is None else self._good.get(known)
        return good.body if good is not None and time.monotonic() < good.until else None

    def keep(
        self,
        pool: str,
        graph: Mapping[str, Any],
        targets: Sequence[str] | None,
        body: Mapping[str, Any],
        free: Free,
    ) -> None:
        """Remember that ComfyUI answered ``body``, and which inputs it checks no further."""
        shape = _shape(pool, graph, targets)
        if shape is None or body.get("node_errors"):
            return
        fixed = [v for node, name, v in _values(graph) if name not in free.get(node, {})]
        if (known := _digest([shape, fixed])) is not None:
            self._free[shape] = free
            self._good[known] = _Verdict(time.monotonic() + self._seconds, body)


def _shape(pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None) -> str | None:
    """Of the graph all but its scalar values, in order; None: it is not even shaped like one."""
    nodes: list[Any] = []
    for node, content in graph.items():
        inputs = content.get("inputs") if isinstance(content, Mapping) else None
        if not isinstance(inputs, Mapping):
            return None
        shown = [
            [name, None if isinstance(value, _SCALARS) else [value]]
            for name, value in inputs.items()
        ]
        nodes.append([node, content.get("class_type"), shown])
    return _digest([pool, targets, nodes])


def _values(graph: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The scalar values."""
    for node, content in graph.items():
        for name, value in content["inputs"].items():
            if isinstance(value, _SCALARS):
                yield node, name, value


def _fits(value: Any, kind: str, least: Any, greatest: Any) -> bool:
    # A bool is an int to Python, and not the same to every node.
    if isinstance(value, bool) != (kind == "BOOLEAN") or not isinstance(value, _TYPES[kind]):
        return False
    return (least is None or value >= least) and (greatest is None or value <= greatest)


def _digest(value: Any) -> str | None:
    """None of what JSON can't say."""
    try:
        plain = to_json(value, inf_nan_mode="constants")
    except ValueError:
        return None
    return hashlib.blake2b(plain, digest_size=16).hexdigest()
