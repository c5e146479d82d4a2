"""Defines the bodies of ``POST /graphs/convert``, and finds what a pool lacks for a graph."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moyin.comfy_api.protocol.node_info import get_choices, is_upload_input, iterate_inputs
from moyin.render.protocol.editor_graph.conversion import Reason
from moyin.render.protocol.graph import find_artifact_ids, is_input_name

# The most entries of a list in the response. A client needs only some.
MAX_REPORTED = 1_000
# ComfyUI also accepts these suffixes of a file name without a space before them.
_OTHER_FOLDERS = ("[output]", "[temp]")


class ConversionRequest(BaseModel):
    """The body of ``POST /graphs/convert``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph: dict[str, Any] = Field(
        description="A graph in the format of ComfyUI's editor or in the API format, or an object "
        "with one as its `prompt` or `workflow`."
    )
    pool: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="The render pool; by default the one that a job would get."
    )


class MissingNode(BaseModel):
    """A node class that the pool does not have or the caller may not use, and its nodes' ids."""

    class_type: str
    nodes: list[str]


class MissingInput(BaseModel):
    """A node's input whose value, such as the name of a model file, does not exist."""

    node: str
    class_type: str
    input: str
    value: str


class MissingParts(BaseModel):
    """The parts of a graph that the pool lacks, at most 1,000 in each list."""

    nodes: list[MissingNode] = Field(description="Node classes.")
    choices: list[MissingInput] = Field(
        description="Model files and other choices that the pool does not have."
    )
    files: list[MissingInput] = Field([], description="Files that you have not uploaded.")


class LeftOutBody(BaseModel):
    """A node, a group or a node's input that the conversion left out.

    `reason`: `muted`, `bypassed`, `note`, `reroute`, `primitive`, `group`, `inlined` (the nodes of
    a subgraph are in the graph instead), or `page_made` (only the editor's page can make the value
    of `input`, such as a picture of a camera).
    """

    model_config = ConfigDict(from_attributes=True)

    reason: Reason
    title: str
    node: str | None = Field(description="The node's id; those of subgraphs have `:` between them.")
    class_type: str | None
    input: str | None


class ConvertedGraph(BaseModel):
    """A graph in the API format, which `POST /jobs` takes as `workflow`."""

    format: Literal["editor", "api"] = Field(description="The format in which the graph was sent.")
    graph: dict[str, Any]
    pool: str = Field(description="The render pool that `missing` is about.")
    missing: MissingParts
    left_out: list[LeftOutBody]


def find_missing_parts(
    graph: Mapping[str, Any], nodes: Mapping[str, Any]
) -> tuple[MissingParts, list[MissingInput]]:
    """Return the parts of a graph that a pool lacks, and the inputs that name uploaded files.

    Args:
        graph: the graph in the API format.
        nodes: the ``/object_info`` of the pool.
    """
    missing_classes: dict[str, list[str]] = {}
    missing_choices: list[MissingInput] = []
    uploads: list[MissingInput] = []
    known_choices: dict[str, Mapping[str, frozenset[str] | None]] = {}
    for node_id, node in graph.items():
        class_type = node["class_type"]
        if class_type not in nodes:
            missing_classes.setdefault(class_type, []).append(node_id)
            continue
        if class_type not in known_choices:
            known_choices[class_type] = _list_choices(nodes[class_type])
        for input_name, value in node.get("inputs", {}).items():
            if input_name not in known_choices[class_type] or not isinstance(value, str):
                continue
            allowed_choices = known_choices[class_type][input_name]
            node_input = MissingInput(
                node=node_id, class_type=class_type, input=input_name, value=value
            )
            if allowed_choices is None:
                if _names_upload(value):
                    uploads.append(node_input)
            elif value not in allowed_choices:
                missing_choices.append(node_input)
    missing_parts = MissingParts(
        nodes=[
            MissingNode(class_type=class_type, nodes=node_ids[:MAX_REPORTED])
            for class_type, node_ids in islice(missing_classes.items(), MAX_REPORTED)
        ],
        choices=missing_choices[:MAX_REPORTED],
    )
    return missing_parts, uploads


def _list_choices(node: Mapping[str, Any]) -> Mapping[str, frozenset[str] | None]:
    """Return the choices of each input of a node class.

    The value is None for an input that takes the name of an uploaded file.
    """
    choices_by_input: dict[str, frozenset[str] | None] = {}
    for _, name, spec in iterate_inputs(node):
        if is_upload_input(spec):
            choices_by_input[name] = None
        elif (choices := get_choices(spec)) is not None:
            choices_by_input[name] = frozenset(
                choice for choice in choices if isinstance(choice, str)
            )
    return choices_by_input


def _names_upload(value: str) -> bool:
    """Return True if the value is the plain name of a file in the input folder.

    Names with another folder and references to artifacts do not count.
    """
    reference = {"": {"inputs": {"": value}}}
    return not (
        value.endswith(_OTHER_FOLDERS) or is_input_name(value) or find_artifact_ids(reference)
    )
