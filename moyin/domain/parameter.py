"""Defines `Parameter`, a typed input of a template, which validates the values of clients."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from moyin.errors import InvalidRequest

Scalar = str | int | float | bool
_ARTIFACT = re.compile(r"(?:artifact:)?(art_[0-9a-f]{32})")
_REFERENCE = re.compile(r"steps\.\d{1,3}(\.[A-Za-z0-9_-]+)+")


class ParameterType(StrEnum):
    """The type of a template's input, by its name in JSON Schema."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


_PYTHON: Mapping[ParameterType, tuple[type, ...]] = {
    ParameterType.STRING: (str,),
    ParameterType.INTEGER: (int,),
    ParameterType.NUMBER: (int, float),
    ParameterType.BOOLEAN: (bool,),
}
_ARTICLE: Mapping[ParameterType, str] = {
    ParameterType.STRING: "a string",
    ParameterType.INTEGER: "an integer",
    ParameterType.NUMBER: "a number",
    ParameterType.BOOLEAN: "true or false",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """The type and the bounds of a template's input, as JSON Schema defines them.

    Attributes:
        default: the value if the client sends none; None means that the input is required.
        image: True if the value must be the id of an artifact. Clients may also send the name of an
            upload, which `moyin.jobs.file_names` replaces by an id before the check.
    """

    name: str
    type: ParameterType
    default: Scalar | None = None
    choices: tuple[Scalar, ...] = ()
    minimum: int | float | None = None
    maximum: int | float | None = None
    exclusive_minimum: int | float | None = None
    exclusive_maximum: int | float | None = None
    multiple_of: int | float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    image: bool = False

    def is_file_name(self, value: str) -> bool:
        """Return True if the input is an image and the value is a file name, not an artifact id."""
        return self.image and not _ARTIFACT.fullmatch(value)

    def check_value(self, value: Any, field: str) -> Scalar:
        """Return the value in the type that the graph needs.

        Args:
            field: the path of the value in the request, for errors.

        Raises:
            InvalidRequest: the value is invalid; the message says what would be valid.
        """
        if self.image:
            return self._parse_artifact_id(value, field)
        typed_value = self._to_type(value)
        if typed_value is None:
            raise self._new_invalid_error(field, f"must be {_ARTICLE[self.type]}")
        if self.choices and typed_value not in self.choices:
            choice_list = ", ".join(json.dumps(choice) for choice in self.choices)
            raise self._new_invalid_error(field, f"must be one of {choice_list}")
        problem = (
            self._find_text_problem(typed_value)
            if isinstance(typed_value, str)
            else self._find_number_problem(typed_value)
        )
        if problem is not None:
            raise self._new_invalid_error(field, problem)
        return typed_value

    def to_reference(self, value: Mapping[str, Any], field: str) -> str:
        """Translate ``{"from": "steps.0.text"}`` to a reference such as ``${steps.0.text:string}``.

        Args:
            field: the path of the value in the request, for errors.

        Raises:
            InvalidRequest: the value is not such an object.
        """
        path = value.get("from")
        if len(value) != 1 or not isinstance(path, str) or not _REFERENCE.fullmatch(path):
            raise self._new_invalid_error(
                field,
                f"must be {_ARTICLE[self.type]}, or, in a pipeline, an object such as "
                '{"from": "steps.0.text"}',
            )
        kind = "artifact" if self.image else self.type.value
        return f"${{{path}:{kind}}}"

    def _parse_artifact_id(self, value: Any, field: str) -> str:
        match = _ARTIFACT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise self._new_invalid_error(
                field,
                "must be the id of an artifact, such as art_0123…, which POST /artifacts returns, or "
                "the name of a file that you uploaded with POST /upload/image",
            )
        return f"artifact:{match[1]}"

    def _to_type(self, value: Any) -> Scalar | None:
        """Return the value in this type, such as 5 for 5.0; None if it has another type."""
        if isinstance(value, bool):
            return value if self.type is ParameterType.BOOLEAN else None
        if self.type is ParameterType.INTEGER and isinstance(value, float) and value.is_integer():
            return int(value)
        return cast(Scalar, value) if isinstance(value, _PYTHON[self.type]) else None

    def _find_text_problem(self, value: str) -> str | None:
        if _ARTIFACT.fullmatch(value):
            return "must not be the id of an artifact, because this input is text"
        if self.min_length is not None and len(value) < self.min_length:
            return f"must have at least {self.min_length} characters"
        if self.max_length is not None and len(value) > self.max_length:
            return f"must have at most {self.max_length} characters"
        if self.pattern is not None and not re.search(self.pattern, value):
            return f"must match {self.pattern}"
        return None

    def _find_number_problem(self, value: int | float) -> str | None:
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum}"
        if self.exclusive_minimum is not None and value <= self.exclusive_minimum:
            return f"must be more than {self.exclusive_minimum}"
        if self.exclusive_maximum is not None and value >= self.exclusive_maximum:
            return f"must be less than {self.exclusive_maximum}"
        if self.multiple_of is not None and not _is_multiple(self.multiple_of, value):
            return f"must be a multiple of {self.multiple_of}"
        return None

    def _new_invalid_error(self, field: str, problem: str) -> InvalidRequest:
        return InvalidRequest(f"{field} {problem}", field=field)


def _is_multiple(step: int | float, value: int | float) -> bool:
    if isinstance(value, int) and float(step).is_integer():
        return value % int(step) == 0
    quotient = value / step
    return math.isclose(quotient, round(quotient), rel_tol=0, abs_tol=1e-9)
