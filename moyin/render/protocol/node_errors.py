"""Reduces the ``node_errors`` of ComfyUI's validation to what a job's row keeps.

ComfyUI accepts a graph if one of its outputs is valid, and reports the nodes for which other outputs
are not executed. Its report may be megabytes: an error can repeat a list of all model files.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

# The most nodes of a job, errors of a node, and dependent outputs of a node that are kept. They are
# part of each event of the job, and of lists of jobs.
MAX_NODES = 20
_MAX_ERRORS = 3
_MAX_OUTPUTS = 10
_MAX_CHARACTERS = 256


def summarize_node_errors(node_errors: Any) -> dict[str, dict[str, Any]]:
    """Return the errors of the first nodes, in ComfyUI's form, with shortened texts.

    Args:
        node_errors: the member of ComfyUI's response, ``{<node id>: {"errors", "class_type",
            "dependent_outputs"}}``. Parts that do not have this form are left out.
    """
    if not isinstance(node_errors, Mapping):
        return {}
    return {
        str(node_id)[:_MAX_CHARACTERS]: {
            "class_type": _shorten(node_error.get("class_type", "")),
            "errors": [
                _summarize_error(error)
                for error in _list_first(node_error.get("errors"), _MAX_ERRORS)
                if isinstance(error, Mapping)
            ],
            "dependent_outputs": [
                _shorten(output)
                for output in _list_first(node_error.get("dependent_outputs"), _MAX_OUTPUTS)
            ],
        }
        for node_id, node_error in islice(node_errors.items(), MAX_NODES)
        if isinstance(node_error, Mapping)
    }


def _summarize_error(error: Mapping[str, Any]) -> dict[str, Any]:
    extra_info = error.get("extra_info")
    input_name = extra_info.get("input_name") if isinstance(extra_info, Mapping) else None
    return {
        **{name: _shorten(error.get(name, "")) for name in ("type", "message", "details")},
        "extra_info": {} if input_name is None else {"input_name": _shorten(input_name)},
    }


def _list_first(values: Any, count: int) -> list[Any]:
    return values[:count] if isinstance(values, list) else []


def _shorten(value: Any) -> str:
    # PostgreSQL can't store NUL.
    text = str(value).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
