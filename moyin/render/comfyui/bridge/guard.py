"""Keeps prompts inside ComfyUI's process to the nodes and the files that they may have.

The gateway has refused what it could see. What it could not is seen here: values that came through
links, nodes that other nodes expand into, and graphs whose values were not known before an earlier
step had run. A prompt brings its pool's patterns in ``extra_data`` under ``moyin``; one without, such
as the operator's own graph that warms a process up, may have every node.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from .names import DATA, PREFIX, Rule, is_link, may_hold, refusals, rule_of, rules_of

__all__ = [
    "KEY",
    "NotAllowed",
    "Rules",
    "brought_by",
    "denied",
    "first_checked",
    "noted",
    "while_executed",
]

# Of ``extra_data``; whatever a client puts there is replaced before the prompt comes here.
KEY = "moyin"
# As `moyin.render.protocol.graph.input_name` makes them.
_OWN = re.compile(r"moyin/[0-9a-f]{64}(\.[a-z0-9]{1,8})?( \[input\])?")
_NONE: Mapping[str, Any] = MappingProxyType({})
_asked: ContextVar[Mapping[str, Any]] = ContextVar("moyin_prompt", default=_NONE)


class NotAllowed(Exception):
    """A node, or a value of one of its inputs, that the prompt may not have."""


class Rules:
    """The rules of this process's node classes, made when a class is first seen.

    Args:
        classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
    """

    def __init__(self, classes: Mapping[str, Any]) -> None:
        self._classes = classes
        self._known: dict[str, dict[str, Rule]] = {}

    def of(self, class_type: str) -> Mapping[str, Rule]:
        """Rules by input; none of a class that is not there. Choices are for ComfyUI to check."""
        if class_type not in self._known:
            try:
                node = self._classes[class_type]
                described = {
                    "input": node.INPUT_TYPES(),
                    "output": node.RETURN_TYPES,
                    "output_node": getattr(node, "OUTPUT_NODE", False),
                }
            except Exception:
                # It is not there, or raises whatever it likes: ComfyUI says so, and won't execute it.
                return {}
            self._known[class_type] = rules_of(class_type, described)
        return self._known[class_type]


def noted(body: dict[str, Any]) -> dict[str, Any]:
    """A handler of ``POST /prompt``: remember what the prompt brings until it is validated."""
    _asked.set(brought_by(body.get("extra_data")))
    return body


def first_checked(validate_prompt: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
    """``execution.validate_prompt`` that lets ComfyUI look only at what it may: it looks for files."""

    @functools.wraps(validate_prompt)
    async def validate(prompt_id: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        errors = _errors(prompt, rules, _asked.get())
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


def while_executed(get_input_data: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
    """``execution.get_input_data`` that looks at the values of a node just before it is executed.

    The wrapped function raises `NotAllowed`.
    """

    @functools.wraps(get_input_data)
    def get_checked(
        inputs: Any,
        class_def: Any,
        unique_id: Any,
        execution_list: Any = None,
        dynprompt: Any = None,
        extra_data: Any = None,
    ) -> Any:
        extra = extra_data or {}
        found = get_input_data(inputs, class_def, unique_id, execution_list, dynprompt, extra)
        if dynprompt is not None:
            class_type = dynprompt.get_node(unique_id)["class_type"]
            _check(class_type, found[0], inputs, rules, brought_by(extra))
        return found

    return get_checked


def denied(class_type: str, brought: Mapping[str, Any]) -> bool:
    """Whether the prompt may not have nodes of the class."""
    allowed = any(fnmatchcase(class_type, pattern) for pattern in brought.get("allow", ("*",)))
    return not allowed or any(fnmatchcase(class_type, p) for p in brought.get("deny", ()))


def _check(
    class_type: str,
    values: Mapping[str, Any],
    inputs: Mapping[str, Any],
    rules: Rules,
    brought: Mapping[str, Any],
) -> None:
    if denied(class_type, brought):
        raise NotAllowed(f"nodes of the class {class_type} are not allowed here")
    known = rules.of(class_type)
    for name, given in inputs.items():
        rule = rule_of(known, name)
        # What came out of a node is a list, with a value for each time that the node is executed.
        held = () if is_link(given) and rule.kind == DATA else values.get(name) or ()
        if all(may_hold(rule, value, _is_own) for value in held):
            continue
        if not _unchecked(class_type, name, brought):
            raise NotAllowed(f"{name}: {_why(rule.kind)}")


def _errors(prompt: Any, rules: Rules, brought: Mapping[str, Any]) -> dict[str, Any]:
    """ComfyUI's ``node_errors`` of what the prompt may not have."""
    errors: dict[str, Any] = {}
    if not isinstance(prompt, Mapping):
        return errors

    def add(node: str, class_type: str, name: str, details: str) -> None:
        error = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": details,
            "extra_info": {"input_name": name},
        }
        told = {"errors": [], "dependent_outputs": [], "class_type": class_type}
        errors.setdefault(node, told)["errors"].append(error)

    for node_id, node in prompt.items():
        class_type = str(node.get("class_type")) if isinstance(node, Mapping) else ""
        if denied(class_type, brought):
            add(node_id, class_type, "", f"nodes of the class {class_type} are not allowed here")
    for refusal in refusals(prompt, rules.of, _is_own):
        if not _unchecked(refusal.class_type, refusal.input, brought):
            details = f"{refusal.input} - {_why(refusal.kind)}"
            add(refusal.node, refusal.class_type, refusal.input, details)
    return errors


def _why(kind: str) -> str:
    if kind == PREFIX:
        return "what a node writes must have a name within its own folder"
    return "no file of yours has this name"


def brought_by(extra_data: Any) -> Mapping[str, Any]:
    """What Moyin gave a prompt along, out of its ``extra_data``."""
    brought = extra_data.get(KEY) if isinstance(extra_data, Mapping) else None
    return brought if isinstance(brought, Mapping) else _NONE


def _unchecked(class_type: str, name: str, brought: Mapping[str, Any]) -> bool:
    whole = f"{class_type}.{name}"
    return any(fnmatchcase(whole, pattern) for pattern in brought.get("unchecked", ()))


def _is_own(text: str) -> bool:
    """Whether it may be an input file that came with the prompt: there are no others."""
    return _OWN.fullmatch(text) is not None
