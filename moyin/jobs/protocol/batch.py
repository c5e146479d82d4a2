"""Batches of the jobs API to the domain: one graph and what each child changes in it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from moyin.domain import references
from moyin.domain.batch import MAX_CHILDREN, apply_patch, make_patch
from moyin.domain.job import Step
from moyin.domain.template import Template, fill
from moyin.errors import InvalidRequest
from moyin.jobs.protocol import wire

__all__ = ["batch_steps"]

_SEEDS = ("seed", "noise_seed")
# What sets a child apart, and where in the request that was said.
_Variant = tuple[Mapping[str, Any], Mapping[str, str]]


def batch_steps(
    batch: wire.Batch, first: Step, template: Template | None
) -> tuple[Mapping[str, Any], tuple[Step, ...]]:
    """The graph that all children have, and the children.

    Args:
        first: the job without its batch.
        template: whose graph it is, if it is not the client's own.

    Raises:
        InvalidRequest: naming the field.
    """
    asked = [name for name in ("seeds", "inputs", "sweep") if getattr(batch, name) is not None]
    if len(asked) != 1:
        raise InvalidRequest("a batch has one of seeds, inputs and sweep", field="batch")
    if template is None:
        variants = _of_graph(batch, first.payload)
        graphs = [_changed(first.payload, chosen) for chosen, _ in variants]
    else:
        variants = _of_template(batch, first.inputs, template)
        graphs = [_filled(template, first.inputs, variant) for variant in variants]
    # Children are no steps one after the other: there is nothing to refer to.
    references.check(graphs, 0)
    base = graphs[0]
    steps = tuple(
        Step(
            kind=first.kind,
            payload=make_patch(base, graph),
            pool=first.pool,
            template=first.template,
            inputs=variant[0],
            outputs=first.outputs,
            cache=first.cache,
        )
        for graph, variant in zip(graphs, variants, strict=True)
    )
    return base, steps


def _of_template(
    batch: wire.Batch, inputs: Mapping[str, Any], template: Template
) -> list[_Variant]:
    if batch.inputs is not None:
        _check_count(len(batch.inputs), "batch.inputs")
        return [
            (chosen, {name: f"batch.inputs.{index}.{name}" for name in chosen})
            for index, chosen in enumerate(batch.inputs)
        ]
    if batch.sweep is not None:
        for key in batch.sweep:
            if key.removeprefix("inputs.") not in template.parameters:
                raise _unknown_key(key, [f"inputs.{name}" for name in template.parameters])
        return [
            ({key.removeprefix("inputs."): value for key, value in chosen.items()},
             {key.removeprefix("inputs."): f"batch.sweep.{key}" for key in chosen})
            for chosen in _combinations(batch.sweep)
        ]  # fmt: skip
    seed = template.parameters.get("seed")
    if seed is None:
        raise InvalidRequest(f"template {template.name!r} has no input 'seed'", field="batch.seeds")
    given = inputs.get("seed", seed.default)
    start = given if isinstance(given, int) else 0
    return [({"seed": value}, {"seed": "batch.seeds"}) for value in _seeds(batch, start)]


def _of_graph(batch: wire.Batch, graph: Mapping[str, Any]) -> list[_Variant]:
    """Variants are by ``workflow.<node>.inputs.<name>``."""
    if batch.inputs is not None:
        raise InvalidRequest("inputs belong to a template", field="batch.inputs")
    if batch.sweep is not None:
        for key in batch.sweep:
            if not _is_value(graph, key):
                known = [
                    f"workflow.{node_id}.inputs.{name}"
                    for node_id, node in graph.items()
                    for name in node.get("inputs", {})
                ]
                raise _unknown_key(key, [one for one in known if _is_value(graph, one)])
        return [
            (chosen, {key: f"batch.sweep.{key}" for key in chosen})
            for chosen in _combinations(batch.sweep)
        ]
    found = {
        f"workflow.{node_id}.inputs.{name}": node["inputs"][name]
        for node_id, node in graph.items()
        for name in _SEEDS
        if type(node.get("inputs", {}).get(name)) is int
    }
    if not found:
        raise InvalidRequest(
            "no node of the workflow has a number as its seed or noise_seed", field="batch.seeds"
        )
    told = dict.fromkeys(found, "batch.seeds")
    if isinstance(batch.seeds, list):
        return [(dict.fromkeys(found, seed), told) for seed in _seeds(batch, 0)]
    return [
        ({key: value + step for key, value in found.items()}, told) for step in _seeds(batch, 0)
    ]


def _seeds(batch: wire.Batch, start: int) -> Sequence[int]:
    seeds = batch.seeds
    if isinstance(seeds, list):
        _check_count(len(seeds), "batch.seeds")
        return seeds
    assert seeds is not None
    _check_count(seeds, "batch.seeds")
    return range(start, start + seeds)


def _combinations(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    _check_count(math.prod(map(len, sweep.values())) if sweep else 0, "batch.sweep")
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def _check_count(count: int, field: str) -> None:
    if not 1 <= count <= MAX_CHILDREN:
        raise InvalidRequest(
            f"{field} makes {count} renders; a batch has 1 to {MAX_CHILDREN}", field=field
        )


def _filled(template: Template, inputs: Mapping[str, Any], variant: _Variant) -> dict[str, Any]:
    chosen, sources = variant
    try:
        return fill(template, {**inputs, **chosen})
    except InvalidRequest as error:
        source = sources.get((error.field or "").removeprefix("inputs."))
        if source is not None:
            error.message = error.message.replace(error.field or "", source, 1)
            error.field = source
        raise


def _changed(graph: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, dict[str, Any]] = {}
    for key, value in chosen.items():
        node_id, name = _place(key)
        patch.setdefault(node_id, {})[name] = value
    return apply_patch(graph, patch)


def _is_value(graph: Mapping[str, Any], key: str) -> bool:
    """Whether the key names an input that is no link to another node."""
    node_id, name = _place(key)
    node = graph.get(node_id) if key.startswith("workflow.") else None
    inputs = node.get("inputs", {}) if node is not None else {}
    return name in inputs and not isinstance(inputs[name], list | dict)


def _place(key: str) -> tuple[str, str]:
    node_id, _, name = key.removeprefix("workflow.").partition(".inputs.")
    return node_id, name


def _unknown_key(key: str, known: Sequence[str]) -> InvalidRequest:
    listed = ", ".join(known[:20]) or "none"
    return InvalidRequest(
        f"{key[:64]!r} can't be swept; what can: {listed}", field=f"batch.sweep.{key[:64]}"
    )
