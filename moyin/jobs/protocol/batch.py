"""Translates a batch in a request of the jobs API to one graph and a patch for each child."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from moyin.domain import references
from moyin.domain.job import MAX_BATCH_CHILDREN, Step, apply_batch_patch, make_batch_patch
from moyin.domain.template import Template, fill_template
from moyin.errors import InvalidRequest
from moyin.jobs.protocol import wire

_SEEDS = ("seed", "noise_seed")
# A child's inputs that differ from those of other children, and the request field of each input.
_Variant = tuple[Mapping[str, Any], Mapping[str, str]]


def build_batch_steps(
    batch: wire.Batch, step_without_batch: Step, template: Template | None
) -> tuple[Mapping[str, Any], tuple[Step, ...]]:
    """Return the graph that all children of a batch share, and each child as a step.

    The payload of such a step is a patch: only the nodes and inputs in which the child's graph
    differs from the shared graph.

    Args:
        step_without_batch: the step of the same job without a batch.
        template: the template of the graph; None if the client sent the graph itself.

    Raises:
        InvalidRequest: a field is invalid.
    """
    member_names = [
        name for name in ("seeds", "inputs", "sweep") if getattr(batch, name) is not None
    ]
    if len(member_names) != 1:
        raise InvalidRequest(
            "a batch must have exactly one of seeds, inputs and sweep", field="batch"
        )
    if template is None:
        graph = step_without_batch.payload
        variants = _list_graph_variants(batch, graph)
        base_graph = _apply_inputs(graph, variants[0][0])
        # Only the changed nodes of each child, because there may be many nodes and many children.
        graphs = (_apply_to_changed_nodes(graph, child_inputs) for child_inputs, _ in variants)
    else:
        inputs = step_without_batch.inputs
        variants = _list_template_variants(batch, inputs, template)
        base_graph = _fill_variant(template, inputs, variants[0])
        graphs = (_fill_variant(template, inputs, variant) for variant in variants)
    patches = [make_batch_patch(base_graph, graph) for graph in graphs]
    # Children run concurrently, so no child can refer to another child's output.
    references.check_references([base_graph, patches], 0)
    steps = tuple(
        Step(
            kind=step_without_batch.kind,
            payload=patch,
            pool=step_without_batch.pool,
            template=step_without_batch.template,
            inputs=variant[0],
            outputs=step_without_batch.outputs,
            cache=step_without_batch.cache,
        )
        for patch, variant in zip(patches, variants, strict=True)
    )
    return base_graph, steps


def _list_template_variants(
    batch: wire.Batch, inputs: Mapping[str, Any], template: Template
) -> list[_Variant]:
    if batch.inputs is not None:
        _check_count(len(batch.inputs), "batch.inputs")
        return [
            (child_inputs, {name: f"batch.inputs.{index}.{name}" for name in child_inputs})
            for index, child_inputs in enumerate(batch.inputs)
        ]
    if batch.sweep is not None:
        for key in batch.sweep:
            if key.removeprefix("inputs.") not in template.parameters:
                raise _new_unknown_key_error(
                    key, [f"inputs.{name}" for name in template.parameters]
                )
        return [
            ({key.removeprefix("inputs."): value for key, value in child_inputs.items()},
             {key.removeprefix("inputs."): f"batch.sweep.{key}" for key in child_inputs})
            for child_inputs in _list_combinations(batch.sweep)
        ]  # fmt: skip
    seed_parameter = template.parameters.get("seed")
    if seed_parameter is None:
        raise InvalidRequest(
            f"batch.seeds needs a template with the input 'seed', which {template.name!r} lacks",
            field="batch.seeds",
        )
    first_seed = inputs.get("seed", seed_parameter.default)
    first_seed = first_seed if isinstance(first_seed, int) else 0
    return [({"seed": value}, {"seed": "batch.seeds"}) for value in _list_seeds(batch, first_seed)]


def _list_graph_variants(batch: wire.Batch, graph: Mapping[str, Any]) -> list[_Variant]:
    """Return the variants of a graph that a batch describes.

    A variant is a pair of mappings with the same keys, ``workflow.<node>.inputs.<name>``. The first
    mapping has the values of these inputs. The second mapping has the fields of the request that
    set the values, for errors.
    """
    if batch.inputs is not None:
        raise InvalidRequest(
            "batch.inputs is allowed only with a template: use batch.sweep for a workflow",
            field="batch.inputs",
        )
    if batch.sweep is not None:
        for key in batch.sweep:
            if not _has_plain_value(graph, key):
                valid_keys = [
                    f"workflow.{node_id}.inputs.{name}"
                    for node_id, node in graph.items()
                    for name in node.get("inputs", {})
                ]
                raise _new_unknown_key_error(
                    key, [name for name in valid_keys if _has_plain_value(graph, name)]
                )
        return [
            (child_inputs, {key: f"batch.sweep.{key}" for key in child_inputs})
            for child_inputs in _list_combinations(batch.sweep)
        ]
    seeds = {
        f"workflow.{node_id}.inputs.{name}": node["inputs"][name]
        for node_id, node in graph.items()
        for name in _SEEDS
        if type(node.get("inputs", {}).get(name)) is int
    }
    if not seeds:
        raise InvalidRequest(
            "batch.seeds needs a node of the workflow with an integer as its seed or noise_seed",
            field="batch.seeds",
        )
    source_fields = dict.fromkeys(seeds, "batch.seeds")
    if isinstance(batch.seeds, list):
        return [(dict.fromkeys(seeds, seed), source_fields) for seed in _list_seeds(batch, 0)]
    return [
        ({key: value + offset for key, value in seeds.items()}, source_fields)
        for offset in _list_seeds(batch, 0)
    ]


def _list_seeds(batch: wire.Batch, first_seed: int) -> Sequence[int]:
    seeds = batch.seeds
    if isinstance(seeds, list):
        _check_count(len(seeds), "batch.seeds")
        return seeds
    assert seeds is not None
    _check_count(seeds, "batch.seeds")
    return range(first_seed, first_seed + seeds)


def _list_combinations(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    _check_count(math.prod(map(len, sweep.values())) if sweep else 0, "batch.sweep")
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def _check_count(count: int, field: str) -> None:
    if not 1 <= count <= MAX_BATCH_CHILDREN:
        raise InvalidRequest(
            f"{field} makes {count} renders, but a batch must have 1 to {MAX_BATCH_CHILDREN}",
            field=field,
        )


def _fill_variant(
    template: Template, inputs: Mapping[str, Any], variant: _Variant
) -> dict[str, Any]:
    child_inputs, source_fields = variant
    try:
        return fill_template(template, {**inputs, **child_inputs})
    except InvalidRequest as error:
        source_field = source_fields.get((error.field or "").removeprefix("inputs."))
        if source_field is not None:
            error.message = error.message.replace(error.field or "", source_field, 1)
            error.field = source_field
        raise


def _apply_inputs(graph: Mapping[str, Any], child_inputs: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, dict[str, Any]] = {}
    for key, value in child_inputs.items():
        node_id, name = _parse_key(key)
        patch.setdefault(node_id, {})[name] = value
    return apply_batch_patch(graph, patch)


def _apply_to_changed_nodes(
    graph: Mapping[str, Any], child_inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the nodes of the graph that a child's inputs change, after the change."""
    node_ids = {_parse_key(key)[0] for key in child_inputs}
    return _apply_inputs({node_id: graph[node_id] for node_id in node_ids}, child_inputs)


def _has_plain_value(graph: Mapping[str, Any], key: str) -> bool:
    """Return True if the key names an input whose value is not a link to another node."""
    node_id, name = _parse_key(key)
    node = graph.get(node_id) if key.startswith("workflow.") else None
    inputs = node.get("inputs", {}) if node is not None else {}
    return name in inputs and not isinstance(inputs[name], list | dict)


def _parse_key(key: str) -> tuple[str, str]:
    node_id, _, name = key.removeprefix("workflow.").partition(".inputs.")
    return node_id, name


def _new_unknown_key_error(key: str, valid_keys: Sequence[str]) -> InvalidRequest:
    listed_keys = ", ".join(valid_keys[:20]) or "none"
    return InvalidRequest(
        f"{key[:64]!r} is not an input that a batch can vary; valid keys: {listed_keys}",
        field=f"batch.sweep.{key[:64]}",
    )
