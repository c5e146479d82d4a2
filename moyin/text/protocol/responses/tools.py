"""Derives the names under which models see the tools of a Responses request.

Other protocols have no namespaces, so a tool in a namespace gets its name as a prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moyin.errors import InvalidRequest
from moyin.text.protocol.responses import wire


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool that the client offers to the model.

    Attributes:
        namespace: the namespace of the tool; None if it has none.
        field: the path of the tool in the request, for errors.
    """

    tool: wire.FunctionTool | wire.CustomTool
    namespace: str | None
    field: str

    @property
    def is_custom(self) -> bool:
        """True if the tool's argument is free text."""
        return isinstance(self.tool, wire.CustomTool)


def join_name(namespace: str | None, name: str) -> str:
    """Return the name under which a model sees a tool."""
    return name if namespace is None else f"{namespace}__{name}"


def list_tools(body: wire.ResponseBody) -> Mapping[str, OfferedTool]:
    """Return the tools of a request by the names under which models see them.

    Raises:
        InvalidRequest: two tools have the same name.
    """
    tools: dict[str, OfferedTool] = {}
    for offered in _flatten_namespaces(body):
        name = join_name(offered.namespace, offered.tool.name)
        if name in tools:
            raise InvalidRequest(
                f"{offered.field}.name: {name!r} is also the name of {tools[name].field}; "
                "each tool needs a name of its own",
                field=f"{offered.field}.name",
            )
        tools[name] = offered
    return tools


def _flatten_namespaces(body: wire.ResponseBody) -> Iterator[OfferedTool]:
    for number, tool in enumerate(body.tools or ()):
        if isinstance(tool, wire.NamespaceTool):
            for place, inner in enumerate(tool.tools):
                yield OfferedTool(inner, tool.name, f"tools.{number}.tools.{place}")
        else:
            yield OfferedTool(tool, None, f"tools.{number}")
