"""Computes the shape of a graph: a digest that is equal for graphs that take about the same time.

The digest depends on the node classes, model files, sizes and numbers of steps. Other numbers,
texts and the links between nodes do not affect it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic_core import to_json

from moyin.render.protocol.graph import find_model_files

_BITS = 64
# The inputs whose numbers affect how long a node takes; seeds, for example, do not.
_SIZES = frozenset(
    {
        *("width", "height", "length", "depth", "batch_size", "amount", "steps"),
        *("frames", "num_frames", "frame_count", "frame_rate", "seconds", "duration"),
        *("megapixels", "scale_by", "upscale_by", "max_length", "max_new_tokens"),
    }
)
# The upper limit of an estimate, because a graph may contain any number.
_MAX_PICTURES = 4096


def compute_shape(graph: Mapping[str, Any]) -> str:
    """Return the graph's shape, a digest of what determines its duration: 16 hexadecimal digits."""
    return combine_hashes(hash_node(node) for node in graph.values())


def combine_hashes(hashes: Iterable[int]) -> str:
    """Return a graph's shape (see `compute_shape`) from the hashes of its nodes, in any order."""
    return f"{sum(hashes) % (1 << _BITS):016x}"


def hash_node(node: Any) -> int:
    """Return the hash of a node, from which `combine_hashes` computes a graph's shape.

    A malformed node has the hash 0.
    """
    if not isinstance(node, Mapping):
        return 0
    inputs = node.get("inputs")
    sizes = {
        name: size
        for name, value in (inputs.items() if isinstance(inputs, Mapping) else ())
        if name in _SIZES and (size := _read_number(value)) is not None
    }
    models = sorted(find_model_files({"": node}))
    summary = to_json([str(node.get("class_type")), sorted(sizes.items()), models])
    return int.from_bytes(hashlib.blake2b(summary, digest_size=_BITS // 8).digest())


def estimate_pictures(graph: Mapping[str, Any]) -> int:
    """Estimate how many pictures a graph stores, from its batch sizes and its nodes that save."""
    return PictureCounts.from_graph(graph).estimate()


class PictureCounts(NamedTuple):
    """Counts in a graph that are used to estimate how many pictures it stores.

    Attributes:
        saves: number of nodes that save pictures.
        batch: size of the largest batch.
        repeats: largest number of repetitions of a batch.
    """

    saves: int = 0
    batch: int = 1
    repeats: int = 1

    @classmethod
    def from_graph(cls, graph: Mapping[str, Any]) -> PictureCounts:
        counts = cls()
        for node in graph.values():
            if not isinstance(node, Mapping):
                continue
            node_inputs = node.get("inputs")
            inputs = node_inputs if isinstance(node_inputs, Mapping) else {}
            counts = cls(
                saves=counts.saves + ("Save" in str(node.get("class_type"))),
                batch=max(counts.batch, _read_count(inputs, "batch_size")),
                repeats=max(counts.repeats, _read_count(inputs, "amount")),
            )
        return counts

    def estimate(self) -> int:
        return min(max(1, self.saves) * self.batch * self.repeats, _MAX_PICTURES)


def _read_count(inputs: Mapping[str, Any], name: str) -> int:
    value = _read_number(inputs.get(name))
    return int(min(value, _MAX_PICTURES)) if value is not None and value >= 1 else 1


def _read_number(value: Any) -> int | float | None:
    """Return the number in an input's value, which may be text; None if there is no number."""
    if isinstance(value, Mapping):
        value = value.get("__value__")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None
