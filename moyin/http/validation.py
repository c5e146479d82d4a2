"""Parses and validates JSON from clients and back ends; errors for clients name the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from moyin.domain.needs import count_utf8_bytes
from moyin.errors import (
    BackendUnavailable,
    BodyTooLarge,
    InvalidJson,
    InvalidRequest,
    InvalidToolCall,
    UnsupportedFeature,
)

# More tokens than any model processes, but few enough that the ledger can hold their sums.
_MAX_TOKEN_COUNT = 10**8
# Fields in which OpenAI, Anthropic, llama.cpp and vLLM accept the schema of an answer.
_SCHEMA_FIELDS = (
    "response_format.json_schema.schema", "response_format.schema", "json_schema",
    "output_config.format.schema", "output_format.schema",
    "guided_json", "structured_outputs.json",
)  # fmt: skip
# However short it is in JSON, a value takes about eighty bytes of memory and a microsecond per
# traversal. The largest body could hold twenty million values.
_MAX_VALUES = 500_000
_GRAMMAR_FIELDS = ("grammar", "guided_grammar", "guided_regex")
# Members of requests that may constrain the answer by a schema or a grammar.
_CONSTRAINING = frozenset(
    {*_GRAMMAR_FIELDS, "tools", *(path.partition(".")[0] for path in _SCHEMA_FIELDS)}
)
# The maximum number of characters of invalid tool arguments that an error shows.
_MAX_SHOWN_ARGUMENTS = 2_000

NO_MEMBERS: Mapping[str, Any] = MappingProxyType({})
M = TypeVar("M", bound=BaseModel)


def _to_utc(moment: datetime) -> datetime:
    """Convert a time to UTC, because SQLite does not store offsets."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time within the years 1 to 9999 in UTC") from None


# A time that clients may send with any offset.
UtcDatetime = Annotated[AwareDatetime, AfterValidator(_to_utc)]


class WireModel(BaseModel):
    """Base class of request bodies: types are strict, and undeclared members are kept."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    @property
    def extras(self) -> Mapping[str, Any]:
        return self.model_extra or {}


def parse_json(body: bytes) -> Any:
    """Parse a request's body as JSON.

    Raises:
        InvalidJson: the body is not JSON.
        BodyTooLarge: the body has too many values. They are estimated by counting separators, so
            separators within strings count, too.
    """
    # Counts the characters that separate values, also within strings, where they separate none.
    if len(body) > _MAX_VALUES < len(body) - len(body.translate(None, b",[{")):
        raise BodyTooLarge(
            f"the body must have at most {_MAX_VALUES} JSON values",
            details={"max_values": _MAX_VALUES},
        )
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a request's body as a JSON object.

    Raises:
        InvalidJson: the body is not JSON.
        BodyTooLarge: the body has too many values, as estimated by `parse_json`.
        InvalidRequest: the body is JSON, but not an object.
    """
    data = parse_json(body)
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object")
    return data


def validate(model: type[M], data: Mapping[str, Any]) -> M:
    """Validate a parsed body with a pydantic model; raise InvalidRequest, which names the field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        field_problems = [(_build_path(problem, data), problem["msg"]) for problem in problems]
        # In a union, the branch with the deepest error is the one that the client meant.
        path, message = max(field_problems, key=lambda pair: pair[0].count("."))
        message = message.removeprefix("Value error, ")
        raise InvalidRequest(
            f"{path}: {message}" if path else message, field=path or None
        ) from None


def find_unsupported_field(
    body_part: WireModel, harmless_fields: frozenset[str], path: str = ""
) -> str | None:
    """Return the path of the first field of the request that its model does not declare.

    Args:
        body_part: the validated request, or an object within it.
        harmless_fields: undeclared fields that may be ignored, as they do not change the answer.
        path: the path of ``body_part`` within the body, to which the field's name is appended.

    Returns:
        The path, such as ``messages.0.name``; None if all fields are declared, harmless or empty.
    """
    for name, value in body_part.extras.items():
        if value and name not in harmless_fields:
            return f"{path}{name}"
    for name in body_part.model_fields_set - body_part.extras.keys():
        value = getattr(body_part, name)
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if isinstance(item, WireModel):
                item_path = f"{path}{name}.{index}." if items is value else f"{path}{name}."
                if (field := find_unsupported_field(item, harmless_fields, item_path)) is not None:
                    return field
    return None


def find_embedded_schemas(data: Mapping[str, Any], schema_member: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the content of each JSON schema in an OpenAI or Anthropic request.

    Args:
        schema_member: the member of a tool that holds its schema, such as ``function.parameters``.

    Raises:
        UnsupportedFeature: the request contains a grammar, whose cost cannot be limited.
    """
    if _CONSTRAINING.isdisjoint(data):
        return
    for name in _GRAMMAR_FIELDS:
        if data.get(name):
            raise UnsupportedFeature(
                f"{name} is not supported: use response_format with a JSON schema",
                field=name,
            )
    paths = list(_SCHEMA_FIELDS)
    tool_list = data.get("tools")
    if isinstance(tool_list, list):
        paths += [f"tools.{index}.{schema_member}" for index in range(len(tool_list))]
    for path in paths:
        if (schema := _get_member(data, path)) is not None:
            yield path, schema


def _get_member(value: Any, path: str) -> Any:
    for name in path.split("."):
        if isinstance(value, list):
            value = value[int(name)]
        elif isinstance(value, Mapping):
            value = value.get(name)
        else:
            return None
    return value


def merge_defaults(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` plus those members of ``defaults`` that ``data`` does not have.

    If both have a member that is an object, these two objects are merged, but only one level deep.
    """
    merged_data = {**defaults, **data}
    for name, default in defaults.items():
        if isinstance(default, Mapping):
            merged_data[name] = {**default, **(data.get(name) or {})}
    return merged_data


def parse_token_count(value: Any) -> int:
    """Return a token count from another server's response, or 0 if it is invalid."""
    return value if isinstance(value, int) and 0 < value <= _MAX_TOKEN_COUNT else 0


def new_malformed_response_error() -> BackendUnavailable:
    """Create the error for a malformed response of a back end."""
    return BackendUnavailable("the back end returned a malformed response", may_be_billed=True)


def count_text_bytes(value: Any) -> int:
    """Return the size of all strings in a JSON value, in UTF-8 bytes."""
    if isinstance(value, str):
        return count_utf8_bytes(value)
    if isinstance(value, Mapping):
        return sum(map(count_text_bytes, value.values()))
    return sum(map(count_text_bytes, value)) if isinstance(value, list) else 0


def require_text(value: Any) -> str:
    """Return a value from another server's response; raise TypeError if it is not a string."""
    if not isinstance(value, str):
        raise TypeError(f"the server must send a string, not {type(value).__name__}")
    return value


def parse_arguments(json_text: str) -> dict[str, Any]:
    """Parse the arguments of a tool call in a client's request; empty text counts as ``{}``.

    Raises:
        InvalidRequest: the arguments are not a JSON object.
    """
    try:
        value = from_json(json_text) if json_text.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(
            "messages: the arguments of a tool call must be a JSON object", field="messages"
        )
    return value


def parse_tool_call_arguments(name: str, json_text: str) -> dict[str, Any]:
    """Parse the arguments of a model's tool call; raise InvalidToolCall if they are invalid."""
    try:
        return parse_arguments(json_text)
    except InvalidRequest:
        raise InvalidToolCall(
            f"the model called the tool {name!r} with arguments that are not a JSON object; try "
            "again, or use another model",
            details={"tool": name, "arguments": json_text[:_MAX_SHOWN_ARGUMENTS]},
        ) from None


def arguments_to_text(value: Any) -> str:
    """Convert the arguments of a tool call, as another server sent them, to JSON text.

    Some servers send an object instead of text, or null for a tool without parameters.

    Raises:
        TypeError: the value is neither text, an object, a list nor null.
    """
    if value is None:
        return ""
    return to_json(value).decode() if isinstance(value, dict | list) else require_text(value)


def _build_path(problem: ErrorDetails, data: Any) -> str:
    """Return the dotted path of an invalid field in the client's body.

    pydantic's location also names branches of unions, which are no part of the body; the path
    leaves them out.
    """
    value, path = data, []
    *outer_keys, last_key = problem["loc"] or ("",)
    for key in outer_keys:
        if _has_member(value, key):
            value = value[key]
            path.append(str(key))
    if _has_member(value, last_key) or (problem["type"] == "missing" and isinstance(last_key, str)):
        path.append(str(last_key))
    if problem["type"].startswith("union_tag"):
        path.append(problem["ctx"]["discriminator"].strip("'"))
    return ".".join(path)


def _has_member(value: Any, key: int | str) -> bool:
    if isinstance(value, Mapping):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)
