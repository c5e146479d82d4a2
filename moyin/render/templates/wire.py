"""Defines the format of template files and the response bodies of ``/templates``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
)

TemplateName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
InputName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
FiniteNumber = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]
ScalarValue = StrictBool | StrictInt | StrictFloat | StrictStr


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class InputSchema(_File):
    """The JSON Schema of one input; with ``format: image`` its value is the id of an artifact."""

    type: Literal["string", "integer", "number", "boolean"]
    title: str | None = None
    description: str | None = None
    default: ScalarValue | None = None
    enum: tuple[ScalarValue, ...] = Field((), max_length=1_000)
    minimum: FiniteNumber | None = None
    maximum: FiniteNumber | None = None
    exclusive_minimum: FiniteNumber | None = Field(None, alias="exclusiveMinimum")
    exclusive_maximum: FiniteNumber | None = Field(None, alias="exclusiveMaximum")
    multiple_of: Annotated[FiniteNumber, Field(gt=0)] | None = Field(None, alias="multipleOf")
    min_length: int | None = Field(None, alias="minLength", ge=0)
    max_length: int | None = Field(None, alias="maxLength", ge=0)
    pattern: str | None = None
    format: Literal["image"] | None = None
    examples: tuple[ScalarValue, ...] = ()

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"must be a regular expression of Python: {error}") from None
        return pattern


class TemplateFile(_File):
    """A template file, whose graph has ``${inputs.<name>}`` in place of each input's value."""

    name: TemplateName
    title: str = Field(min_length=1, max_length=120)
    description: str = Field("", max_length=4_000)
    aliases: tuple[TemplateName, ...] = Field((), max_length=16)
    pool: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    inputs: dict[InputName, InputSchema] = Field(default_factory=dict, max_length=100)
    outputs: tuple[str, ...] = Field((), max_length=100)
    graph: dict[str, JsonValue] = Field(min_length=1)


class TemplateBody(BaseModel):
    """The response body that describes a template, without its graph."""

    name: str
    title: str
    description: str
    aliases: list[str]
    pool: str | None = Field(description="Pool that renders it if the job names no pool.")
    inputs: dict[str, Any] = Field(description="JSON Schema (2020-12) of a job's `inputs`.")
    outputs: list[str] = Field(description="Nodes whose files are the result; none: all nodes.")


class TemplateList(BaseModel):
    """The response body of ``GET /templates``, sorted by name."""

    templates: list[TemplateBody]
