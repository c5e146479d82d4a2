"""Derives the names under which models see the tools of a Responses request.

Other protocols have no namespaces, so a namespace's name becomes a prefix of its tools' names.
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
    for offered_tool in _flatten_namespaces(body):
        name = join_name(offered_tool.namespace, offered_tool.tool.name)
        if name in tools:
            raise InvalidRequest(
                f"{offered_tool.field}.name: {name!r} is also the name of {tools[name].field}; "
                "each tool needs a name of its own",
                field=f"{offered_tool.field}.name",
            )
        tools[name] = offered_tool
    return tools


def _flatten_namespaces(body: wire.ResponseBody) -> Iterator[OfferedTool]:
    for number, tool in enumerate(body.tools or ()):
        if isinstance(tool, wire.NamespaceTool):
            for index, member in enumerate(tool.tools):
                yield OfferedTool(member, tool.name, f"tools.{number}.tools.{index}")
        else:
            yield OfferedTool(tool, None, f"tools.{number}")
