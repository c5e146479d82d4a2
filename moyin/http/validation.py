"""From a request's bytes to a validated wire shape, with errors that name the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from moyin.domain.needs import text_size
from moyin.errors import (
    BackendUnavailable,
    BodyTooLarge,
    InvalidJson,
    InvalidRequest,
    InvalidToolCall,
    UnsupportedFeature,
)

__all__ = [
    "NO_MEMBERS",
    "UtcDatetime",
    "WireModel",
    "arguments_to_text",
    "embedded_schemas",
    "malformed_response",
    "merged",
    "parse_arguments",
    "parse_json",
    "parse_object",
    "require_text",
    "text_bytes",
    "token_count",
    "tool_call_arguments",
    "unsupported_field",
    "validate",
]

# More than any model reads or writes; the ledger's columns hold the sum of several such.
_LARGEST_COUNT = 10**8
# Where servers look for the schema of an answer: of OpenAI, Anthropic, llama.cpp and vLLM.
_SCHEMAS = (
    "response_format.json_schema.schema", "response_format.schema", "json_schema",
    "output_config.format.schema", "output_format.schema",
    "guided_json", "structured_outputs.json",
)  # fmt: skip
# Each takes some eighty bytes of memory and a microsecond of every walk over it, however few bytes it is
# in JSON: twenty million fit into the largest body.
_MOST_VALUES = 500_000
_GRAMMARS = ("grammar", "guided_grammar", "guided_regex")
# Members of a request without which it holds its answer to nothing, as most do.
_HOLDING = frozenset({*_GRAMMARS, "tools", *(path.partition(".")[0] for path in _SCHEMAS)})
# Characters of a model's broken arguments that its client is shown.
_SHOWN_ARGUMENTS = 2_000

NO_MEMBERS: Mapping[str, Any] = MappingProxyType({})
M = TypeVar("M", bound=BaseModel)


def _in_utc(moment: datetime) -> datetime:
    """SQLite keeps what a clock shows, and not where it hangs."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie within the years 1 to 9999 in UTC") from None


# A moment with whatever offset the client writes it.
UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class WireModel(BaseModel):
    """Base of request shapes: types are exact; unknown members are kept for pass-through."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    @property
    def extras(self) -> Mapping[str, Any]:
        return self.model_extra or {}


def parse_json(body: bytes) -> Any:
    """The JSON value in ``body``.

    Raises:
        InvalidJson: it is not JSON.
        BodyTooLarge: it may hold too many values.
    """
    # What separates values, or may be a part of a text.
    if len(body) > _MOST_VALUES < len(body) - len(body.translate(None, b",[{")):
        raise BodyTooLarge(
            f"the body holds more than {_MOST_VALUES} values", details={"max_values": _MOST_VALUES}
        )
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        InvalidJson: it is not JSON.
        BodyTooLarge: it may hold too many values.
        InvalidRequest: it is JSON but no object.
    """
    data = parse_json(body)
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object")
    return data


def validate(shape: type[M], data: Mapping[str, Any]) -> M:
    """``data`` as ``shape``.

    Raises:
        InvalidRequest: naming the first wrong field by its path, such as ``messages.0.content``.
    """
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        path, message = _deepest([(_path(problem, data), problem["msg"]) for problem in problems])
        message = message.removeprefix("Value error, ")
        raise InvalidRequest(
            f"{path}: {message}" if path else message, field=path or None
        ) from None


def unsupported_field(shape: WireModel, harmless: frozenset[str], path: str = "") -> str | None:
    """The path of the first member that ``shape`` does not know and that asks for something; None
    where there is none. ``harmless`` are names that change nothing in the answer."""
    for name, value in shape.extras.items():
        if value and name not in harmless:
            return f"{path}{name}"
    for name in shape.model_fields_set - shape.extras.keys():
        value = getattr(shape, name)
        items = value if isinstance(value, list) else [value]
        for place, item in enumerate(items):
            if isinstance(item, WireModel):
                at = f"{path}{name}.{place}." if items is value else f"{path}{name}."
                if (found := unsupported_field(item, harmless, at)) is not None:
                    return found
    return None


def embedded_schemas(data: Mapping[str, Any], tools: str) -> Iterator[tuple[str, Any]]:
    """JSON schemas in a request of OpenAI's or Anthropic's format, where any server that speaks it
    looks for one: each with its field.

    Args:
        tools: the member of a tool that holds its schema, such as ``function.parameters``.

    Raises:
        UnsupportedFeature: it holds a grammar, whose cost nobody can tell.
    """
    if _HOLDING.isdisjoint(data):
        return
    for name in _GRAMMARS:
        if data.get(name):
            raise UnsupportedFeature(
                f"{name} is taken by no server of ours: use response_format with a JSON schema",
                field=name,
            )
    paths = list(_SCHEMAS)
    offered = data.get("tools")
    if isinstance(offered, list):
        paths += [f"tools.{number}.{tools}" for number in range(len(offered))]
    for path in paths:
        if (schema := _at(data, path)) is not None:
            yield path, schema


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        if isinstance(value, list):
            value = value[int(name)]
        elif isinstance(value, Mapping):
            value = value.get(name)
        else:
            return None
    return value


def merged(data: Mapping[str, Any], additions: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with the ``additions`` that it has not, objects merged one level deep."""
    result = {**additions, **data}
    for name, added in additions.items():
        if isinstance(added, Mapping):
            result[name] = {**added, **(data.get(name) or {})}
    return result


def token_count(value: Any) -> int:
    """A token count that another server sent; what is no count is 0."""
    return value if isinstance(value, int) and 0 < value <= _LARGEST_COUNT else 0


def malformed_response() -> BackendUnavailable:
    """Return the error for a back end's answer that is none."""
    return BackendUnavailable("the back end's answer has not the shape of one")


def text_bytes(value: Any) -> int:
    """UTF-8 bytes of all texts in a piece of JSON."""
    if isinstance(value, str):
        return text_size(value)
    if isinstance(value, Mapping):
        return sum(map(text_bytes, value.values()))
    return sum(map(text_bytes, value)) if isinstance(value, list) else 0


def require_text(value: Any) -> str:
    """A text that another server sent.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def parse_arguments(text: str) -> dict[str, Any]:
    """The object in a tool call's JSON text; an empty text is an empty object.

    Raises:
        InvalidRequest: it is no JSON object.
    """
    try:
        value = from_json(text) if text.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("a tool call's arguments must be a JSON object", field="messages")
    return value


def tool_call_arguments(name: str, text: str) -> dict[str, Any]:
    """Return the arguments of a model's tool call, for a protocol that carries them as an object.

    Raises:
        InvalidToolCall: the model wrote something else.
    """
    try:
        return parse_arguments(text)
    except InvalidRequest:
        raise InvalidToolCall(
            f"the model called the tool {name!r} with arguments that are not a JSON object",
            details={"tool": name, "arguments": text[:_SHOWN_ARGUMENTS]},
        ) from None


def arguments_to_text(value: Any) -> str:
    """Return the arguments of a tool call that another server sent as the JSON text that they should
    be; some servers send the object itself, or nothing where a tool takes none.

    Raises:
        TypeError: they are neither.
    """
    if value is None:
        return ""
    return to_json(value).decode() if isinstance(value, dict | list) else require_text(value)


def _deepest(problems: Sequence[tuple[str, str]]) -> tuple[str, str]:
    # Of a union's branches, the one that got furthest is the one the client meant.
    return max(problems, key=lambda problem: problem[0].count("."))


def _path(problem: ErrorDetails, data: Any) -> str:
    """The members of the location that exist in the request; pydantic adds names of branches."""
    value, path = data, []
    *inner, last = problem["loc"] or ("",)
    for part in inner:
        if _has(value, part):
            value = value[part]
            path.append(str(part))
    if _has(value, last) or (problem["type"] == "missing" and isinstance(last, str)):
        path.append(str(last))
    if problem["type"].startswith("union_tag"):
        path.append(problem["ctx"]["discriminator"].strip("'"))
    return ".".join(path)


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)
