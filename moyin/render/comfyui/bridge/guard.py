"""Checks inside ComfyUI's process that a prompt uses only nodes and files that it may use.

The gateway checks a graph when it is submitted. This module checks the values that are known only
later: values of links, nodes that other nodes expand into, and outputs of earlier job steps. The
patterns of allowed and denied nodes are in the prompt's ``extra_data`` under ``moyin``. A prompt
without patterns, such as the operator's warm-up graph, may use all nodes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from .input_rules import (
    DATA,
    PREFIX,
    Rule,
    allows_value,
    derive_rules,
    find_refusals,
    find_rule,
    is_link,
)

# The member of ``extra_data`` with Moyin's data, which overwrites a member of the client.
MOYIN_KEY = "moyin"
# The form of names that `moyin.render.protocol.graph.make_input_name` returns.
_OWN_FILE = re.compile(r"moyin/[0-9a-f]{64}(\.[a-z0-9]{1,8})?( \[input\])?")
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_submitted_patterns: ContextVar[Mapping[str, Any]] = ContextVar("moyin_prompt", default=_EMPTY)


class NotAllowed(Exception):
    """Raised for a node or an input value that the prompt may not use."""


class NodeRules:
    """Caches the input rules of ComfyUI's node classes.

    Args:
        classes: the value of ComfyUI's ``NODE_CLASS_MAPPINGS``.
    """

    def __init__(self, classes: Mapping[str, Any]) -> None:
        self._classes = classes
        self._rules: dict[str, dict[str, Rule]] = {}

    def get_rules(self, class_type: str) -> Mapping[str, Rule]:
        """Return the rules of a class's inputs by input name; empty if the class is unknown."""
        if class_type not in self._rules:
            try:
                node_class = self._classes[class_type]
                description = {
                    "input": node_class.INPUT_TYPES(),
                    "output": node_class.RETURN_TYPES,
                    "output_node": getattr(node_class, "OUTPUT_NODE", False),
                }
            except Exception:
                # ComfyUI reports unknown and failing classes, and executes neither.
                return {}
            self._rules[class_type] = derive_rules(class_type, description)
        return self._rules[class_type]


def store_patterns(body: dict[str, Any]) -> dict[str, Any]:
    """Remember the allowed and denied node patterns in a body of ``POST /prompt``.

    `wrap_validation` needs them.

    Returns:
        The body, unchanged.
    """
    _submitted_patterns.set(get_moyin_data(body.get("extra_data")))
    return body


def wrap_validation(validate_prompt: Callable[..., Any], rules: NodeRules) -> Callable[..., Any]:
    """Wrap ``execution.validate_prompt`` to refuse nodes and files that the prompt may not use.

    The check comes first, because ComfyUI's own validation opens files.
    """

    @functools.wraps(validate_prompt)
    async def validate(prompt_id: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        errors = _find_errors(prompt, rules, _submitted_patterns.get())
        if errors:
            error = {
                "type": "prompt_outputs_failed_validation",
                "message": "Prompt outputs failed validation",
                "details": "",
                "extra_info": {},
            }
            return False, error, [], errors
        return await validate_prompt(prompt_id, prompt, *args, **kwargs)

    return validate


def wrap_input_data(get_input_data: Callable[..., Any], rules: NodeRules) -> Callable[..., Any]:
    """Wrap ``execution.get_input_data`` to check the input values of a node before its execution.

    The wrapped function raises `NotAllowed` for a node or a value that the prompt may not use.
    """

    @functools.wraps(get_input_data)
    def get_checked_input_data(
        inputs: Any,
        class_def: Any,
        unique_id: Any,
        execution_list: Any = None,
        dynprompt: Any = None,
        extra_data: Any = None,
    ) -> Any:
        prompt_data = extra_data or {}
        input_data = get_input_data(
            inputs, class_def, unique_id, execution_list, dynprompt, prompt_data
        )
        if dynprompt is not None:
            class_type = dynprompt.get_node(unique_id)["class_type"]
            _check_values(class_type, input_data[0], inputs, rules, get_moyin_data(prompt_data))
        return input_data

    return get_checked_input_data


def is_denied(class_type: str, patterns: Mapping[str, Any]) -> bool:
    """Return True if the patterns forbid nodes of the class.

    Args:
        patterns: the prompt's lists ``allow`` and ``deny``; ``deny`` has precedence.
    """
    is_allowed = any(fnmatchcase(class_type, pattern) for pattern in patterns.get("allow", ("*",)))
    return not is_allowed or any(fnmatchcase(class_type, p) for p in patterns.get("deny", ()))


def _check_values(
    class_type: str,
    values: Mapping[str, Any],
    inputs: Mapping[str, Any],
    rules: NodeRules,
    patterns: Mapping[str, Any],
) -> None:
    if is_denied(class_type, patterns):
        raise NotAllowed(_make_denial_message(class_type))
    input_rules = rules.get_rules(class_type)
    for name, written_value in inputs.items():
        rule = find_rule(input_rules, name)
        # ComfyUI passes a list with a value for each execution of the node.
        resolved_values = (
            () if is_link(written_value) and rule.kind == DATA else values.get(name) or ()
        )
        if all(allows_value(rule, value, _is_own_file) for value in resolved_values):
            continue
        if not _is_exempt(class_type, name, patterns):
            raise NotAllowed(f"{class_type}, input {name}: {_explain_refusal(rule.kind)}")


def _find_errors(prompt: Any, rules: NodeRules, patterns: Mapping[str, Any]) -> dict[str, Any]:
    """Return ComfyUI's ``node_errors`` for the nodes and files that the prompt may not use."""
    errors: dict[str, Any] = {}
    if not isinstance(prompt, Mapping):
        return errors

    def add_error(node_id: str, class_type: str, name: str, details: str) -> None:
        error = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": details,
            "extra_info": {"input_name": name},
        }
        node_error = {"errors": [], "dependent_outputs": [], "class_type": class_type}
        errors.setdefault(node_id, node_error)["errors"].append(error)

    for node_id, node in prompt.items():
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        if is_denied(class_type, patterns):
            add_error(node_id, class_type, "", _make_denial_message(class_type))
    for refusal in find_refusals(prompt, rules.get_rules, _is_own_file):
        if not _is_exempt(refusal.class_type, refusal.input, patterns):
            details = f"{refusal.input} - {_explain_refusal(refusal.kind)}"
            add_error(refusal.node, refusal.class_type, refusal.input, details)
    return errors


def _make_denial_message(class_type: str) -> str:
    return (
        f"this pool does not allow nodes of the class {class_type}: remove them, or choose a pool "
        "that allows them"
    )


def _explain_refusal(kind: str) -> str:
    if kind == PREFIX:
        return "an output file must have a relative name without '..'"
    return "you have no file with this name; upload it first"


def get_moyin_data(extra_data: Any) -> Mapping[str, Any]:
    """Return the member ``moyin`` of a prompt's ``extra_data``, or an empty mapping."""
    data = extra_data.get(MOYIN_KEY) if isinstance(extra_data, Mapping) else None
    return data if isinstance(data, Mapping) else _EMPTY


def _is_exempt(class_type: str, name: str, patterns: Mapping[str, Any]) -> bool:
    full_name = f"{class_type}.{name}"
    return any(fnmatchcase(full_name, pattern) for pattern in patterns.get("unchecked", ()))


def _is_own_file(text: str) -> bool:
    """Return whether a text is the name of one of Moyin's input files.

    Only the input files of the executing prompt exist, so no name leads to another tenant's file.
    """
    return _OWN_FILE.fullmatch(text) is not None
